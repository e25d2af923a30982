"""The batched executor's time by type of operation, to explain a missed target."""

from __future__ import annotations

from collections import Counter

from fedpeft.clients.workbench import Workbench
from torch.profiler import ProfilerActivity, profile

from experiments.speed.workload import Workload

KINDS = {
    "frozen products": ("mkldnn::_linear_pointwise", "aten::addmm", "aten::mm"),
    "per-client products": ("aten::bmm", "aten::baddbmm"),
    "attention": ("aten::_scaled_dot_product", "aten::_flash_attention"),
    "GELU": ("aten::gelu",),
    "layer norms": ("aten::native_layer_norm",),
    "casts and copies": ("aten::copy_", "aten::clone", "aten::cat"),
    "optimizer": ("aten::_foreach", "aten::_fused_adam", "Optimizer."),
}
"""Prefixes of the names of torch's operations, by type."""


def find_kind(operation: str) -> str:
    """Return the type of an operation; "other" if none fits."""
    return next((kind for kind, starts in KINDS.items() if operation.startswith(starts)), "other")


def measure_breakdown(load: Workload) -> dict[str, float]:
    """Return each type's share of the time of one group of clients, largest first, on one thread."""
    bench = Workbench(load.plan)
    group = [load.create_job(client) for client in range(min(load.plan.clients_per_pass, len(load.partition)))]
    list(bench.executor.train(group))  # the first pass chooses kernels
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        list(bench.executor.train(group))
    spent: Counter[str] = Counter()
    for event in profiled.key_averages():
        spent[find_kind(event.key)] += event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: time / total for kind, time in spent.most_common()}

"""The measurements of this study: functions that yield rows as plain dictionaries."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from experiments.aggregation.timing import time_interleaved
from fedpeft.aggregation.strategy import RoundStrategy, Strategy
from fedpeft.aggregation.update import Update
from fedpeft.conformance.cohorts import (
    Client,
    create_lora_layout,
    create_random_state,
    create_random_updates,
    run_round,
)
from fedpeft.errors import ConfigError
from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import AdapterShape, Layout, State
from fedpeft.peft.low_rank import CostModel, LowRank, Method, compute_leading_eigenvectors, compute_truncated_svd

Row = dict[str, str | float | int]

MIXED = [Client(AdapterShape(rank, 16.0), 1.0 + i % 7) for i, rank in enumerate([4] * 50 + [8] * 30 + [16] * 20)]
"""100 clients, 50 of rank 4, 30 of rank 8, 20 of rank 16. The global rank is 16; one layer's stack is 760 wide."""

MINILM = [(384, 384)] * 12
"""The query and value layers of a 6-layer MiniLM."""

SEVEN_B = {"attention": (4096, 4096), "gate and up": (11008, 4096), "down": (4096, 11008)}
"""One module of each shape of a 7B model: per layer four of the first, two of the second, one of the third."""


def measure_costs(repeats: int) -> Iterator[Row]:
    """Measure the constants of `fedpeft.peft.low_rank.CostModel`: fp64 seconds per elementary step, the minimum."""
    generator = torch.Generator().manual_seed(0)
    constants: dict[str, list[float]] = {"multiply": [], "factorise": [], "eigen": [], "singular": []}
    for tall, wide in ((1500, 400), (4096, 800)):
        tall_matrix = torch.randn(tall, wide, generator=generator, dtype=torch.float64)
        gram = tall_matrix.T @ tall_matrix
        seconds = time_interleaved(
            {
                "multiply": lambda tall_matrix=tall_matrix: tall_matrix.T @ tall_matrix,  # type: ignore[misc]
                "factorise": lambda tall_matrix=tall_matrix: torch.linalg.qr(tall_matrix),  # type: ignore[misc]
                "eigen": lambda gram=gram: compute_leading_eigenvectors(gram, 16),  # type: ignore[misc]
                "singular": lambda gram=gram: torch.linalg.svd(gram),  # type: ignore[misc]
            },
            repeats + 1,  # the first call of each is a warm-up
            min,
        )
        steps = {"multiply": tall * wide**2, "factorise": tall * wide**2, "eigen": wide**3, "singular": wide**3}
        for name, value in seconds.items():
            constants[name].append(value / steps[name])
    used = CostModel()
    for name, values in constants.items():
        yield {"constant": name, "measured": sum(values) / len(values), "in use": getattr(used, name)}


def measure_choices(repeats: int) -> Iterator[Row]:
    """Check whether the cost model chooses the fastest exact method.

    Regret is the time of its choice over the best time.
    """
    for out, in_, width in ((384, 384, 40), (384, 384, 760), (384, 1536, 760), (1024, 1024, 400), (4096, 4096, 200)):
        product = _create_product(out, in_, width, decay=False)
        methods: list[Method] = ["qr", "gram", "dense"] if out < 4096 else ["qr", "gram"]
        seconds = time_interleaved(
            {m: lambda m=m, p=product: compute_truncated_svd(p, 16, m) for m in methods},  # type: ignore[misc]
            repeats,
        )
        chosen = CostModel().choose_cheapest(out, in_, width, 16, torch.float32)
        row: Row = {"out": out, "in": in_, "width": width}
        row |= {f"{m} ms": 1000 * s for m, s in seconds.items()}
        yield row | {"chosen": chosen, "regret": seconds[chosen] / min(seconds.values())}


def _create_product(out: int, in_: int, width: int, decay: bool) -> LowRank:
    """Create a stack of `width` rank-one terms: independent, or with `decay` noisy copies of 8 common ones.

    Clients' updates resemble the second case.
    """
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(out, width, generator=generator) / out**0.5
    right = torch.randn(width, in_, generator=generator) / in_**0.5
    if decay:
        left = torch.randn(out, 8, generator=generator).repeat(1, width // 8) / out**0.5 + 0.5 * left
        right = torch.randn(8, in_, generator=generator).repeat(width // 8, 1) / in_**0.5 + 0.5 * right
    return LowRank(left / width**0.5, right)


def measure_svd(repeats: int) -> Iterator[Row]:
    """Compare the dense fp32 SVD of dW with SVDs of its factors, for a 4096 x 4096 module and 100 clients of rank 8."""
    for decay in (True, False):
        product = _create_product(4096, 4096, 800, decay)
        results: dict[str, LowRank] = {}

        def dense(product: LowRank = product, results: dict[str, LowRank] = results) -> None:
            left, singular, right = torch.linalg.svd(product.to_dense(), full_matrices=False)
            results["dense"] = LowRank(left[:, :8] * singular[:8], right[:8])

        def record_factored(method: str, product: LowRank = product, results: dict[str, LowRank] = results) -> None:
            results[method] = compute_truncated_svd(product, 8, method).to_low_rank()

        def time_factored(method: str, times: int = 5) -> float:
            return time_interleaved({method: lambda: record_factored(method)}, times)[method]

        quick: dict[str, list[float]] = {"gram": [], "qr": [], "randomised": []}
        slow: list[float] = []
        for _ in range(repeats):
            slow.append(time_interleaved({"dense": dense}, 1)["dense"])
            for method, values in quick.items():
                values.append(time_factored(method))
        seconds = {"dense": _compute_median(slow)} | {m: _compute_median(v) for m, v in quick.items()}
        exact = product.to_dense()
        least = float((results["dense"].to_dense() - exact).norm())
        for method, value in seconds.items():
            approximation = results[method].to_dense()
            yield {
                "spectrum": "shared directions" if decay else "flat",
                "method": method,
                "seconds": value,
                "times faster": seconds["dense"] / value,
                "difference from the dense result": float(
                    (approximation - results["dense"].to_dense()).norm() / results["dense"].to_dense().norm()
                ),
                "error over the least possible": float((approximation - exact).norm()) / least - 1,
            }


def _compute_median(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


def measure_rules(repeats: int) -> Iterator[Row]:
    """Measure the seconds of one aggregation of 100 clients.

    Rules that support it use mixed ranks, the others rank 8 (`ranks`).
    """
    shapes: dict[str, list[tuple[int, int]]] = {"MiniLM, 12 layers": MINILM}
    shapes |= {f"7B {name}": [shape] for name, shape in SEVEN_B.items()}
    for model, layers in shapes.items():
        runs = {}
        ranks = {}
        for name in strategies.names:
            case = _create_case(strategies.build(name), layers)
            if case is not None:
                strategy, state, layout, updates, ranks[name] = case
                runs[name] = lambda c=(strategy, state, layout, updates): run_round(*c)
        seconds = time_interleaved(runs, repeats)
        for name, value in seconds.items():
            yield {
                "model": model,
                "strategy": name,
                "ranks": ranks[name],
                "seconds": value,
                "times fedit": value / seconds["fedit"],
            }


def _create_case(
    strategy: Strategy, layers: Sequence[tuple[int, int]]
) -> tuple[Strategy, State, Layout, list[Update], str] | None:
    form = AdapterShape(16, 16.0) if strategy.mixed_ranks else AdapterShape(8, 16.0)
    clients = MIXED if strategy.mixed_ranks else [Client(form, c.weight) for c in MIXED]
    layout = create_lora_layout(layers, form)
    try:
        strategy.check(layout, [c.form for c in clients])
    except ConfigError:
        return None  # the rule trains other tensors than LoRA's factors
    state = create_random_state(layout, 0)
    updates = create_random_updates(strategy, state, layout, clients, 0)
    return strategy, state, layout, updates, "mixed" if strategy.mixed_ranks else "8"


def measure_memory(repeats: int) -> Iterator[Row]:
    """Measure the memory that a round adds: two 11008 x 4096 modules, 100 clients, updates on disk.

    The value is the peak resident memory minus the resident memory before the round.
    """
    with tempfile.TemporaryDirectory() as folder:
        layout = create_lora_layout([(11008, 4096)] * 2, AdapterShape(16, 16.0))
        state = create_random_state(layout, 0)
        save_file(state, Path(folder) / "state")
        for i, client in enumerate(MIXED):
            (update,) = create_random_updates(strategies.build("flexlora"), state, layout, [client], i)
            save_file(update.received, Path(folder) / f"received-{i}")
            save_file(update.delta, Path(folder) / f"delta-{i}")
        module = sum(c.form.rank for c in MIXED) * (11008 + 4096) * 4
        for name in strategies.names:
            strategy = strategies.build(name)
            if isinstance(strategy, RoundStrategy) and strategy.mixed_ranks:
                context = multiprocessing.get_context("spawn")
                with context.Pool(1) as pool:
                    above = pool.apply(_measure_peak, (name, folder))
                yield {"strategy": name, "module MB": module / 1e6, "above MB": above / 1e6}


def _measure_peak(name: str, folder: str) -> int:
    torch.set_num_threads(1)
    strategy = strategies.build(name)
    layout = create_lora_layout([(11008, 4096)] * 2, AdapterShape(16, 16.0))
    state = load_file(Path(folder) / "state")
    torch.linalg.svd(torch.eye(64))  # loads the library before the measurement
    before = _read_high_water()
    assert isinstance(strategy, RoundStrategy)
    strategy.aggregate(state, layout, lambda names: StoredUpdates(Path(folder), names), 1, 0)
    return _read_high_water() - before


def _read_high_water() -> int:
    """Return the peak resident memory of this process in bytes.

    getrusage would include the parent's memory before the fork.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


class StoredUpdates(Sequence[Update]):
    """Updates on disk, read again at each access."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        """Hold the folder of the updates and the names of their tensors."""
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(MIXED)

    def __getitem__(self, i):  # type: ignore[no-untyped-def]
        """Read the update of client `i`."""
        if i >= len(MIXED):
            raise IndexError(i)
        received, delta = (self._read(f"{kind}-{i}") for kind in ("received", "delta"))
        return Update(i, MIXED[i].weight, MIXED[i].form, received, delta)

    def _read(self, file: str) -> State:
        from safetensors import safe_open

        with safe_open(self.folder / file, "pt") as tensors:
            return {name: tensors.get_tensor(name) for name in self.names}


STUDIES = {
    "costs": measure_costs,
    "choices": measure_choices,
    "svd": measure_svd,
    "rules": measure_rules,
    "memory": measure_memory,
}

"""Which way of computing frozen matrix products is faster on this CPU; probed once per machine and remembered.

The choice is remembered in the cache, so that two runs on one machine make the same one: it changes rounding.
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from statistics import median

import torch

from fedpeft.machine.cache import cache_directory
from fedpeft.machine.hardware import fast_bf16
from fedpeft.peft.stacked_layers import FrozenLinear, Kernel

TOKENS, OUT, IN = 512, 1536, 384
"""The product that is timed: as in a small encoder's feed-forward layer."""

REPEATS = 15
GAIN = 1.05
"""Another kernel must be faster than torch's own by this factor to be chosen."""


def cpu_name() -> str:
    """The CPU's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def candidates(dtype: torch.dtype) -> tuple[Kernel, ...]:
    """The kernels that this machine can run in `dtype`."""
    if dtype == torch.float64 or not torch._C._has_mkldnn:
        return ("native",)
    if dtype == torch.bfloat16 and not fast_bf16("cpu"):
        return ("native", "widened")
    return ("native", "onednn")


def gemm_rates(dtype: torch.dtype) -> dict[Kernel, float]:
    """GFLOP/s of one thread for each kernel (median over interleaved repeats, forward product)."""
    layer = torch.nn.Linear(IN, OUT).to(dtype).requires_grad_(False)
    x = torch.randn(TOKENS, IN).to(dtype)
    kernels = candidates(dtype)
    layers = {kernel: FrozenLinear(layer, kernel) for kernel in kernels}
    seconds: dict[Kernel, list[float]] = {kernel: [] for kernel in kernels}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for repeat in range(REPEATS + 2):
                for kernel, module in layers.items():
                    started = time.thread_time()
                    module(x)
                    if repeat >= 2:
                        seconds[kernel].append(time.thread_time() - started)
    finally:
        torch.set_num_threads(threads)
    return {kernel: 2 * TOKENS * OUT * IN / median(times) / 1e9 for kernel, times in seconds.items()}


def choose(dtype: torch.dtype) -> Kernel:
    """The kernel for frozen products in `dtype` on this machine."""
    if len(candidates(dtype)) == 1:
        return "native"
    key = f"{cpu_name()} / torch {torch.__version__} / {dtype}"
    file = cache_directory() / "kernels.json"
    known: dict[str, Kernel] = {}
    if file.exists():
        try:
            known = json.loads(file.read_text())
        except (OSError, ValueError):
            known = {}
    if known.get(key) not in candidates(dtype):
        rates = gemm_rates(dtype)
        fastest = max(rates, key=lambda kernel: rates[kernel])
        known[key] = fastest if rates[fastest] > GAIN * rates["native"] else "native"
        partial = file.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(known, indent=2))
        os.replace(partial, file)
    return known[key]

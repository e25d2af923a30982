"""GFLOP/s of one matrix product by kernel, the peak that rounds are compared with."""

from __future__ import annotations

import time
from statistics import median

import torch

from fedpeft.models.kernels import FrozenLinear, Kernel, list_kernels

TOKENS, OUT, IN = 512, 1536, 384
"""Sizes of the product that is timed, those of a small encoder's feed-forward layer."""

REPEATS = 15
"""Number of timed products."""


def measure_gemm_rates(dtype: torch.dtype) -> dict[Kernel, float]:
    """Measure GFLOP/s of one thread for each kernel: the median over interleaved repeats of the forward product."""
    layer = torch.nn.Linear(IN, OUT).to(dtype).requires_grad_(False)
    x = torch.randn(TOKENS, IN).to(dtype)
    kernels = list_kernels(dtype)
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

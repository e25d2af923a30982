"""Seconds and peak memory of what a device computes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Cost:
    """Of work that was repeated.

    Attributes:
        seconds: the median.
        repeats: how often it was timed.
        memory: peak bytes that torch has allocated on the device; None where it does not tell (CPUs).
    """

    seconds: float
    repeats: int
    memory: int | None

    @property
    def gigabytes(self) -> float | None:
        """The peak, rounded for a table."""
        return None if self.memory is None else round(self.memory / 1e9, 2)


def measure_seconds(work: Callable[[], object], device: str) -> float:
    """Once: by the device's own events, so that what is queued when `work` returns counts, or by the clock."""
    if not device.startswith("cuda"):
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end)) / 1e3


def measure_cost(work: Callable[[], object], device: str, repeats: int) -> Cost:
    """Of `work`, after it has run once untimed (kernels are chosen, memory is taken)."""
    work()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    each = [measure_seconds(work, device) for _ in range(repeats)]
    return Cost(median(each), repeats, get_peak(device))


def time_interleaved(ways: dict[str, Callable[[], object]], device: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of each way in each repeat, one way after another within it; each has run once before."""
    for work in ways.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            found[name].append(measure_seconds(work, device))
    return found


def get_peak(device: str) -> int | None:
    """Bytes, since it was last reset."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None


def empty_cache(device: str) -> None:
    """Give back what is not in use."""
    import gc

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()

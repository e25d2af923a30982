"""Seconds and peak memory of work on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Cost:
    """The cost of repeated work.

    Attributes:
        seconds: median seconds.
        repeats: number of timed repeats.
        memory: peak bytes that torch allocated on the device; None on CPUs.
    """

    seconds: float
    repeats: int
    memory: int | None

    @property
    def gigabytes(self) -> float | None:
        """The peak memory in GB, rounded for a table."""
        return None if self.memory is None else round(self.memory / 1e9, 2)


def measure_seconds(work: Callable[[], object], device: str) -> float:
    """Time one execution, with device events on CUDA, so that queued work counts."""
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
    """Measure `work` after one untimed execution, which chooses kernels and allocates memory."""
    work()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    each = [measure_seconds(work, device) for _ in range(repeats)]
    return Cost(median(each), repeats, get_peak(device))


def time_interleaved(ways: dict[str, Callable[[], object]], device: str, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each way in each repeat; ways take turns, after one untimed execution each."""
    for work in ways.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            found[name].append(measure_seconds(work, device))
    return found


def get_peak(device: str) -> int | None:
    """Return the peak memory in bytes since the last reset; None on CPUs."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None


def empty_cache(device: str) -> None:
    """Give back what is not in use."""
    import gc

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()

"""Interleaved timing: every candidate runs once per repeat, so that a busy moment of the machine hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def time_interleaved(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int,
    summary: Callable[[Sequence[float]], float] = statistics.median,
) -> dict[str, float]:
    """Seconds of each candidate over `repeats` (at least 1) rounds: their median, or another `summary`."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: summary(values) for name, values in seconds.items()}

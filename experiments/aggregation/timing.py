"""Interleaved timing: every candidate runs once per repeat, so that a busy moment affects all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def time_interleaved(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int,
    summary: Callable[[Sequence[float]], float] = statistics.median,
) -> dict[str, float]:
    """Return the seconds of each candidate over `repeats` (at least 1) rounds: the median, or `summary`."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: summary(values) for name, values in seconds.items()}

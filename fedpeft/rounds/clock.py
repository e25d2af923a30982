"""What a round takes: seconds in all, in training, and in the server's own work."""

from __future__ import annotations

import time


class Stopwatch:
    """Seconds spent inside of it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._entered


class Clock:
    """The times of a round, which begins now."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.training_seconds = 0.0
        self.aggregating = Stopwatch()

    def note_step(self) -> None:
        """The next state is there; what follows is evaluation."""
        self.training_seconds = self.seconds

    @property
    def seconds(self) -> float:
        """Since the round began."""
        return time.perf_counter() - self._started

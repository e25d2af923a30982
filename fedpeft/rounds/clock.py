"""Times of a round: seconds in all, in training, and in the server's own work."""

from __future__ import annotations

import time


class Stopwatch:
    """A context manager that counts the seconds spent inside it."""

    def __init__(self) -> None:
        """Start at 0 seconds."""
        self.seconds = 0.0

    def __enter__(self) -> None:
        """Start counting."""
        self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        """Stop counting."""
        self.seconds += time.perf_counter() - self._entered


class Clock:
    """The times of a round that begins now."""

    def __init__(self) -> None:
        """Begin the round."""
        self._started = time.perf_counter()
        self.training_seconds = 0.0
        self.aggregating = Stopwatch()

    def note_step(self) -> None:
        """Note that training is over; what follows is evaluation."""
        self.training_seconds = self.seconds

    @property
    def seconds(self) -> float:
        """Seconds since the round began."""
        return time.perf_counter() - self._started

"""The phases of a run with their times, and a line if a phase has been silent for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

SILENCE = 8.0
"""Seconds without output after which a line reports the running phase."""


class Phases:
    """The running phase, and the time of each phase; a phase that returns adds to its time.

    Args:
        clock: returns seconds since any point in time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without a phase."""
        self._clock = clock
        self._finished: dict[str, float] = {}
        self._name = self._part = ""
        self._entered = self._began = clock()
        self._done = self._total = 0

    def enter(self, name: str, total: int = 0) -> None:
        """End the running phase, and begin one of `total` steps (0: unknown)."""
        now = self._clock()
        if self._name:
            self._finished[self._name] = self._finished.get(self._name, 0.0) + now - self._entered
        self._name, self._entered, self._total = name, now, total
        self._part, self._began, self._done = "", now, 0

    def part(self, name: str) -> None:
        """Begin a part of the phase, which has its own name; its time counts for the phase."""
        self._part, self._began, self._done, self._total = name, self._clock(), 0, 0

    def reach(self, done: int, total: int) -> None:
        """Set how many steps of the phase, or of its part, are done."""
        self._done, self._total = done, total

    def advance(self, steps: int) -> None:
        """Count finished steps of the phase."""
        self._done += steps

    @property
    def name(self) -> str:
        """The name of the running phase; empty: nothing has begun."""
        return self._name

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of each phase so far, in the order of their beginnings."""
        running = self._clock() - self._entered
        told = dict(self._finished)
        return told | ({self._name: told.get(self._name, 0.0) + running} if self._name else {})

    def __str__(self) -> str:
        """Return the running phase or its part, its progress, and its time."""
        of = f" {self._done} of {self._total}," if self._total > 1 else ""
        return f"{self._part or self._name or 'working'}:{of} {self._clock() - self._began:.0f} s"


class Heartbeat:
    """A thread that calls `beat` whenever nothing else has happened for `silence` seconds; `reset` reports an event."""

    def __init__(self, beat: Callable[[], None], silence: float) -> None:
        """Prepare the thread, which starts with the context."""
        self._beat = beat
        self._silence = silence
        self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self.reset()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the thread."""
        self._ended.set()
        self._thread.join()

    def reset(self) -> None:
        """Restart the silence, because something was printed."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.0, self._last + self._silence - time.monotonic())):
            if time.monotonic() - self._last >= self._silence:
                self._beat()
                self.reset()

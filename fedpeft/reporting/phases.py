"""Where the time of a run goes: its phases, one after another, and a line where one has been silent for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

SILENCE = 8.0
"""Seconds after which a line says what is being done, where nothing else does."""


class Phases:
    """What a run is doing, and how long each phase has taken; one that comes again goes on with its time.

    Args:
        clock: seconds since anything.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._finished: dict[str, float] = {}
        self._name = self._part = ""
        self._entered = self._began = clock()
        self._done = self._total = 0

    def enter(self, name: str, total: int = 0) -> None:
        """The phase before ends, and one of `total` steps begins (0: nobody counts them)."""
        now = self._clock()
        if self._name:
            self._finished[self._name] = self._finished.get(self._name, 0.0) + now - self._entered
        self._name, self._entered, self._total = name, now, total
        self._part, self._began, self._done = "", now, 0

    def part(self, name: str) -> None:
        """A part of the phase begins, which is told of by its own name; its time is the phase's."""
        self._part, self._began, self._done, self._total = name, self._clock(), 0, 0

    def reach(self, done: int, total: int) -> None:
        """So many steps of the phase, or of its part, are done."""
        self._done, self._total = done, total

    def advance(self, steps: int) -> None:
        """More steps of the phase are done."""
        self._done += steps

    @property
    def name(self) -> str:
        """Of the running phase; empty: nothing has begun."""
        return self._name

    @property
    def seconds(self) -> dict[str, float]:
        """Of each phase, in the order of their beginnings; the running one until now."""
        running = self._clock() - self._entered
        told = dict(self._finished)
        return told | ({self._name: told.get(self._name, 0.0) + running} if self._name else {})

    def __str__(self) -> str:
        """The running phase, or its part, how far it is, and since when it runs."""
        of = f" {self._done} of {self._total}," if self._total > 1 else ""
        return f"{self._part or self._name or 'working'}:{of} {self._clock() - self._began:.0f} s"


class Heartbeat:
    """Calls `beat` whenever nothing else has happened for `silence` seconds; `heard` says that something has."""

    def __init__(self, beat: Callable[[], None], silence: float) -> None:
        self._beat = beat
        self._silence = silence
        self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self.reset()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def reset(self) -> None:
        """Something has been said."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.0, self._last + self._silence - time.monotonic())):
            if time.monotonic() - self._last >= self._silence:
                self._beat()
                self.reset()

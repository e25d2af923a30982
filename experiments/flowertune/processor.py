"""Processor time of this process and its descendants, which other work on the machine changes little."""

from __future__ import annotations

import threading

import psutil

INTERVAL_SECONDS = 1.0


class ProcessorTime:
    """A sampler that polls all processes; `seconds` sums the last reading of each."""

    def __init__(self) -> None:
        """Prepare the polling thread; entering the context starts it."""
        self._used: dict[tuple[int, float], float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before = 0.0

    @property
    def seconds(self) -> float:
        """User and system time since the context was entered, in seconds."""
        return sum(self._used.values()) - self._before

    def __enter__(self) -> ProcessorTime:
        """Start polling."""
        self._look()
        self._before = sum(self._used.values())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop polling after a last reading."""
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self._look()

    def _look(self) -> None:
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            try:
                times = process.cpu_times()
                self._used[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue

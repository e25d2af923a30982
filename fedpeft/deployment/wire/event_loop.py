"""An event loop in its own thread, which other threads hand work to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class EventLoop:
    """An event loop that runs from `start` to `stop`, in a daemon thread: a process that ends does not wait for it."""

    def __init__(self, name: str) -> None:
        """Create the loop and its thread; it does not run yet."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; allowed once."""
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether the loop is between `start` and `stop`."""
        return self._thread.is_alive()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work in the loop; wait for its result, or its error."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def call_soon(self, call: Callable[..., object], *arguments: object) -> None:
        """Call a function in the loop, in the order of these calls; do not wait."""
        self._loop.call_soon_threadsafe(call, *arguments)

    def stop(self) -> None:
        """Abandon unfinished work, and wait for the thread to end."""
        self.call_soon(self._loop.stop)
        self._thread.join()

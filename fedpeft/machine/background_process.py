"""A computation in a process of its own, beside a run, on the processor time that the others leave.

The process writes nothing: ended at any moment, it leaves nothing behind. It ends with whoever has started it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from fedpeft.errors import RunError
from fedpeft.machine.processes import (
    end_with_parent,
    get_forkserver,
    get_storage_variables,
    hide_main_module,
    keep_where,
)

T = TypeVar("T")

NICENESS = 5
"""Of the process: against one that computes it gets a quarter of a core, so that it never waits for ever."""


class BackgroundProcess(Generic[T]):
    """`function(*arguments)`, begun at once; the function is found by its module's name.

    Args:
        done: is told, in a thread of its own, once there is a result, an error or neither.
    """

    def __init__(
        self, done: Callable[[BackgroundProcess[T]], None], function: Callable[..., T], *arguments: Any
    ) -> None:
        context = get_forkserver()
        self._done = done
        self._answer, theirs = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_compute, args=(theirs, get_storage_variables(), function, arguments), daemon=True
        )
        self._result: T | None = None
        self.error: Exception | None = None
        self.seconds: float | None = None
        self._closed = False
        self._finished = threading.Event()
        with hide_main_module():
            self._process.start()
        theirs.close()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        try:
            self.seconds, self._result, self.error = self._answer.recv()
        except (EOFError, OSError):  # it was ended
            pass
        except Exception as error:  # whatever a class raises that is made anew from what was sent
            self.error = RunError(f"FP5156 what a process has sent can't be read ({type(error).__name__}: {error})")
        self._finished.set()
        if not self._closed:
            self._done(self)

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it still computes."""
        return not self._finished.is_set()

    @property
    def lost(self) -> bool:
        """Whether the process was ended before it had a result."""
        return not self.running and self.seconds is None

    def wait_for_result(self) -> T | None:
        """Waits for the result; None: the process was ended from outside, as systems do that run out of memory.

        Raises:
            Exception: whatever the function has raised.
        """
        self._finished.wait()
        if self.error is not None:
            raise self.error
        return self._result

    def close(self) -> None:
        """End it, whether it is done or not."""
        self._closed = True
        self._process.kill()
        self._process.join()
        self._watcher.join()
        self._answer.close()


def _compute(
    answer: Connection, where: Mapping[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who has started this process, and ends it
    end_with_parent()
    keep_where(where)
    os.nice(NICENESS)
    started = time.perf_counter()
    try:
        made = function(*arguments)
    except Exception as error:
        error.add_note(traceback.format_exc())
        _send(answer, (time.perf_counter() - started, None, error))
    else:
        _send(answer, (time.perf_counter() - started, made, None))


def _send(answer: Connection, found: tuple[float, Any, Exception | None]) -> None:
    """What has come out; of what can't be sent, why."""
    try:
        answer.send(found)
    except Exception as error:
        answer.send((found[0], None, RunError(f"FP5157 {found[2] or error}")))

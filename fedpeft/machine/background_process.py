"""Computation in a low-priority process beside a run.

The process writes no files, so it leaves nothing behind if it is killed. It ends with the process that started it.
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
    set_storage_variables,
)

T = TypeVar("T")

NICENESS = 5
"""Niceness of the process: beside a busy process it gets a quarter of a core, so it always makes progress."""


class BackgroundProcess(Generic[T]):
    """A call of `function(*arguments)` in its own process.

    Attributes:
        error: the exception of the function or of its transfer; None: there is none.
        seconds: duration of the call; None: it has not finished.
    """

    def __init__(
        self, done: Callable[[BackgroundProcess[T]], None], function: Callable[..., T], *arguments: Any
    ) -> None:
        """Start the process.

        Args:
            done: called in a thread of its own when there is a result or an error, or the process was killed.
            function: a function that its module's name identifies.
            arguments: its arguments.
        """
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
        except (EOFError, OSError):  # the process was killed
            pass
        except Exception as error:  # unpickling runs code of any class
            self.error = RunError(f"FP5156 the result of a process can't be read ({type(error).__name__}: {error})")
        self._finished.set()
        if not self._closed:
            self._done(self)

    @property
    def pid(self) -> int:
        """Identifier of the process."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is still computing."""
        return not self._finished.is_set()

    @property
    def is_lost(self) -> bool:
        """Whether the process was killed before it had a result."""
        return not self.is_running and self.seconds is None

    def wait_for_result(self) -> T | None:
        """Wait for the result and return it; None if the process was killed from outside, for instance without memory.

        Raises:
            Exception: whatever the function raised.
        """
        self._finished.wait()
        if self.error is not None:
            raise self.error
        return self._result

    def close(self) -> None:
        """End the process, whether it has finished or not."""
        self._closed = True
        self._process.kill()
        self._process.join()
        self._watcher.join()
        self._answer.close()


def _compute(
    answer: Connection, where: Mapping[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    end_with_parent()
    set_storage_variables(where)
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
    """Send the result, or if that fails, the reason."""
    try:
        answer.send(found)
    except Exception as error:
        answer.send((found[0], None, RunError(f"FP5157 {found[2] or error}")))

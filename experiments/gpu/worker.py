"""A process that runs steps one after another and is killed if a step takes too long.

It loads torch once. A step that crashes or is killed takes down only this process: the next step gets a new one. Its
output goes to a log.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from experiments.gpu.kit import Kit, Step
from experiments.gpu.record import Outcome
from fedpeft.machine.processes import hide_main_module

Catalogue = Callable[[], Sequence[Step]]
"""A module-level function that creates the steps; the process imports it."""


PATIENCE = 5.0
"""Seconds that the process has to end before it is killed."""


class Worker:
    """The process, started with the first step."""

    def __init__(self, kit: Kit, catalogue: Catalogue, log: Path) -> None:
        """Hold the kit, the catalogue of steps and the log; no process starts yet."""
        self.kit, self.catalogue, self.log = kit, catalogue, log
        self._process: Any = None
        self._connection: Connection | None = None

    def run(self, step: Step, left: float) -> Outcome | None:
        """Run a step and return its outcome; None if `left` seconds passed before the step's own limit.

        Loading libraries into a new process counts toward `left` only.
        """
        end = began = time.monotonic()
        end += left
        try:
            connection = self._ready(left)
            if connection is None:
                return None
            began = time.monotonic()
            limit = min(step.limit, max(0.0, end - began))
            connection.send(step.name)
            if not connection.poll(limit):
                self.kill()
                if limit < step.limit:
                    return None
                return Outcome(step.section, "too slow", limit, reason=f"not done after {limit:.0f} s")
            row, reason = connection.recv()
        except (EOFError, OSError):
            self.kill()
            row, reason = None, f"its process ended; see {self.log}"
        spent = time.monotonic() - began
        return Outcome(step.section, "failed" if row is None else "done", spent, row or {}, reason)

    def _ready(self, left: float) -> Connection | None:
        """Return the connection to a process that can take a step; None if it was not ready after `left` seconds."""
        if self._connection is not None:
            return self._connection
        context = get_context("spawn")
        self._connection, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, self.kit, self.catalogue, str(self.log)))
        with hide_main_module():
            self._process.start()
        far.close()
        if not self._connection.poll(left):
            self.kill()
            return None
        self._connection.recv()
        return self._connection

    def close(self) -> None:
        """End it; it has been asked for nothing."""
        if self._process is not None and self._connection is not None:
            with suppress(OSError):
                self._connection.send(None)
            self._process.join(PATIENCE)
        self.kill()

    def kill(self) -> None:
        """Kill the process and the processes that it has started."""
        if self._process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(self._process.pid) == self._process.pid:  # otherwise it has no process group of its own yet
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        assert self._connection is not None
        self._connection.close()
        self._process = self._connection = None


def _serve(connection: Connection, kit: Kit, catalogue: Catalogue, log: str) -> None:
    """Answer names of steps with rows, or with the reason why there is none."""
    os.setsid()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update({"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"})
    steps = {step.name: step for step in catalogue()}
    connection.send("ready")
    with suppress(EOFError, KeyboardInterrupt):
        for name in iter(connection.recv, None):
            connection.send(_answer(steps[name], kit))


def _answer(step: Step, kit: Kit) -> tuple[dict[str, Any] | None, str]:
    import traceback

    try:
        return dict(step.run(kit)), ""
    except (Exception, SystemExit) as error:  # SystemExit: processes of a federation have failed
        traceback.print_exc()
        sys.stderr.flush()
        lines = str(error).strip().splitlines()
        return None, f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
    finally:
        if "torch" in sys.modules:
            from experiments.gpu.clock import empty_cache

            empty_cache(kit.device)

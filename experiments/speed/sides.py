"""A side of the comparison: a process with its own workers that runs one round on request.

Sides exist at the same time and are idle while another one works, so that rounds can be interleaved.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from fedpeft.peft.adapter import State

if TYPE_CHECKING:
    from experiments.speed.workload import Workload

Framework = Literal["plain", "flower", "fedpeft"]


@dataclass(frozen=True)
class Variant:
    """A way to run the round.

    Attributes:
        framework: the framework that runs it.
        text: name in tables.
        dtype: precision of the base; empty for that of the case.
        rebuild: Flower: load the model again for every client, instead of keeping it in the actor.
        executor: fedpeft: "batched" or "sequential".
        together: fedpeft batched: many clients in one pass (else one).
        kernel: fedpeft batched: the faster of the two matrix products (else torch's own).
        reuse: fedpeft batched: keep what the frozen blocks below the lowest adapter compute (else compute it again).
    """

    framework: Framework
    text: str
    dtype: str = ""
    rebuild: bool = False
    executor: str = "batched"
    together: bool = True
    kernel: bool = True
    reuse: bool = True


@dataclass(frozen=True)
class Round:
    """A finished round: its seconds and the global state after it.

    `once` are seconds spent before the first round on results that later rounds reuse.
    """

    seconds: float
    after: State
    once: float = 0.0


def answer(connection: Connection, one_round: Callable[[str], Round]) -> None:
    """Do a round for each name of a variant that arrives, until None does."""
    for name in iter(connection.recv, None):
        try:
            connection.send(one_round(name))
        except Exception as error:
            connection.send(RuntimeError(f"{type(error).__name__}: {error}"))


class Side:
    """The process of one framework with all its variants; a context manager."""

    def __init__(self, framework: Framework, load: Workload, variants: dict[str, Variant], log: Path) -> None:
        """Start the process."""
        context = get_context("spawn")
        self._connection, far = context.Pipe()
        mine = {name: v for name, v in variants.items() if v.framework == framework}
        self._process = context.Process(target=_run_side, args=(framework, far, load, mine, log))
        self._process.start()
        far.close()
        self._log = log
        self.peak = 0
        """Highest proportional set size of the process and its descendants since `watch`, in bytes."""
        self._stop = threading.Event()

    def __enter__(self) -> Side:
        """Return this side."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching the memory, and end the process."""
        self._stop.set()
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(60)
        if self._process.is_alive():
            self._process.kill()

    def run_round(self, variant: str) -> Round:
        """Run one round.

        Raises:
            RuntimeError: the round failed. The message names the log.
        """
        try:
            self._connection.send(variant)
            result = self._connection.recv()
        except (EOFError, OSError):
            result = RuntimeError("the process ended")
        if isinstance(result, Exception):
            raise RuntimeError(f"{variant}: {result} (see {self._log})")
        assert isinstance(result, Round)
        return result

    def watch(self, interval: float = 0.5) -> None:
        """Begin to sample memory."""
        threading.Thread(target=self._sample, args=(interval,), daemon=True).start()

    def _sample(self, interval: float) -> None:
        while not self._stop.wait(interval):
            self.peak = max(self.peak, measure_tree_memory(self._process.pid or 0))


def measure_tree_memory(pid: int) -> int:
    """Return the proportional set size of a process and its descendants in bytes."""
    total = 0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error, AttributeError):
                total += process.memory_full_info().pss
    return total


def _run_side(
    framework: Framework, connection: Connection, load: Workload, variants: dict[str, Variant], log: Path
) -> None:
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from fedpeft.reporting.console import silence_libraries

    silence_libraries()
    if framework == "plain":
        from experiments.speed.plain import run
    elif framework == "flower":
        from experiments.speed.flower import run
    else:
        from experiments.speed.own import run
    run(connection, load, variants)

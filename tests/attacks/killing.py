"""Runs in processes of their own that can be killed, for tests: what they import is there before they begin."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

from fedpeft import simulate
from fedpeft.study import __main__ as study

COMMANDS = {"simulate": simulate.main, "study": study.main}

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.attacks.killing", "fedpeft.simulation.simulation", "fedpeft.clients.preload"])


def command(name: str, arguments: list[str], log: str) -> None:
    """Run the command with its output in a file, and end the process with its exit code."""
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    with suppress(PermissionError):
        os.setpgid(0, 0)
    raise SystemExit(COMMANDS[name](arguments))


def started(name: str, arguments: list[str], log: str) -> BaseProcess:
    """Start the command in a process."""
    process = _server.Process(target=command, args=(name, arguments, log))
    process.start()
    return process


def timed(name: str, arguments: list[str], log: str) -> float:
    """Seconds that the command takes, undisturbed."""
    before = time.monotonic()
    process = started(name, arguments, log)
    process.join()
    with open(log) as said:
        assert process.exitcode == 0, said.read()
    return time.monotonic() - before


@dataclass
class Killer:
    """Kills a command at moments that are drawn.

    Attributes:
        name, log: of the command; the file of what it says.
        seconds: that it takes when nobody kills it, as it has last been seen: other work on the machine comes and goes.
        chance: draws the moments.
        kills: so far.
    """

    name: str
    log: str
    seconds: float
    chance: random.Random
    kills: int = 0

    def run(self, again: Callable[[], list[str]], most: int) -> None:
        """Begin the command repeatedly and kill it, until it was killed `most` times in all or has finished.

        After the last kill, the command runs to its end.

        Args:
            again: returns the arguments that begin or resume the command.
            most: the number of kills.
        """
        while self.kills < most:
            process, before = started(self.name, again(), self.log), time.monotonic()
            process.join(self.chance.uniform(0.02, 1.0) * self.seconds)
            if process.exitcode is not None:
                self.seconds = min(self.seconds, time.monotonic() - before)
                break
            process.kill()
            process.join()
            self.kills += 1
        timed(self.name, again(), self.log)

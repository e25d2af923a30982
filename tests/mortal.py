"""Real clients and a server that keep what they add up, and end themselves, or drop out, where they are told to.

Each is a process of its own that can be killed; what it imports is there before it begins. A point is "ROUND STEP
WHEN", where WHEN is one of

`before` and `after`: killed (SIGKILL) before it takes the step, or after the step is on its disk and before anybody
hears of it; `during` (servers): after the first answer; `drop` (clients): it fails in the step.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import struct
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from fedpeft.clients.masking import Masking

from fedpeft import join, serve, simulate
from fedpeft.communication.messages import Report
from fedpeft.privacy.secure_sum.coordinator import Coordinator
from fedpeft.privacy.secure_sum.member import Member
from fedpeft.privacy.secure_sum.neighbours import Terms
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.observer import RoundResult
from fedpeft.rounds.masked_sum import MaskedSum

POINTS: set[tuple[str, ...]] = set()
KEPT = Path("added")

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.mortal", "fedpeft.clients.preload"])


def started(folder: Path, name: str, words: Sequence[str], points: Sequence[str]) -> BaseProcess:
    """Start the server, or the client called `name`, in a folder; its output goes to NAME.log."""
    process = _forks.Process(target=lived, args=(folder, name, list(words), list(points)))
    process.start()
    return process


def start_killed_run(words: Sequence[str], round_number: int) -> BaseProcess:
    """Start a simulation that is killed (SIGKILL) after a round is on its disk."""
    process = _forks.Process(target=simulate_until, args=(list(words), round_number))
    process.start()
    return process


def simulate_until(words: Sequence[str], round_number: int) -> None:
    """Simulate, and kill this process after a round."""
    done = ConsoleObserver.round_done

    def round_done(self: ConsoleObserver, result: RoundResult) -> bool:
        if result.round == round_number:
            os.kill(os.getpid(), signal.SIGKILL)
        return done(self, result)

    ConsoleObserver.round_done = round_done  # type: ignore[method-assign]
    simulate.main(list(words))


def lived(folder: Path, name: str, words: Sequence[str], points: Sequence[str]) -> None:
    """Run a command in this process, and end the process with the command's exit code."""
    os.chdir(folder)
    sink = os.open(f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.environ["COLUMNS"] = "300"
    POINTS.update(tuple(point.split()) for point in points)
    if name == "serve":
        server()
        raise SystemExit(serve.main(list(words)))
    client()
    raise SystemExit(join.main(list(words)))


def reached(round_number: int, step: int, when: str) -> bool:
    return (str(round_number), str(step), when) in POINTS


def die_at(round_number: int, step: int, when: str) -> None:
    if reached(round_number, step, when):
        os.kill(os.getpid(), signal.SIGKILL)


def round_of(terms: Terms) -> int:
    return int(struct.unpack_from(">QI", terms.context)[1])


def keep(name: str, numbers: np.ndarray) -> None:
    KEPT.mkdir(exist_ok=True)
    np.save(KEPT / f"{name}.npy", numbers)


def client() -> None:
    answer, add, vector = Masking.answer, Masking.add, Member.vector

    def stepping(real):
        def step(self, instruction, *given):
            die_at(instruction.round, instruction.step, "before")
            if reached(instruction.round, instruction.step, "drop"):
                return Report(instruction.client, instruction.round, b"", error="it drops out")
            report = real(self, instruction, *given)
            die_at(instruction.round, instruction.step, "after")
            return report

        return step

    def kept(self, sealed, numbers):
        keep(f"{round_of(self.terms)}-{self.client}", numbers)
        return vector(self, sealed, numbers)

    Masking.answer, Masking.add, Member.vector = stepping(answer), stepping(add), kept


def server() -> None:
    asked, total = MaskedSum._ask, Coordinator.sum

    def asking(self, number, instructions, said, take, phase):
        die_at(self.round, number, "before")

        def taking(client, content):
            take(client, content)
            die_at(self.round, number, "during")

        step = asked(self, number, instructions, said, taking, phase)
        die_at(self.round, number, "after")
        return step

    def summed(self):
        found = total(self)
        keep(f"{round_of(self.terms)}-sum", found)
        (KEPT / f"{round_of(self.terms)}.json").write_text(json.dumps([self.terms.bits, sorted(self.survivors)]))
        return found

    MaskedSum._ask, Coordinator.sum = asking, summed

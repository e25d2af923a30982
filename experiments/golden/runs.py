"""Cases as commands, in one tree or in two."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from experiments.golden.cases import Case, write_own_rows
from experiments.golden.commands import SECONDS, Commands
from experiments.golden.flags import format_words
from experiments.golden.outcome import Outcome, read_outcome
from fedpeft.data.rows import load_dataset

CLIENTS = ("a", "b", "c")
ROWS = (40, 90, 25)
"""Numbers of examples of the real clients."""

INTERRUPTED = 130
"""Exit code of fedpeft's commands after Ctrl-C."""


class RefusedError(Exception):
    """A command ended with an error; the message is the command's own."""


@dataclass(frozen=True)
class Tree:
    """A commit's source.

    Attributes:
        name: the name that the user gave.
        source: the folder with the package.
        cache: the cache of its commands, which no other tree uses.
    """

    name: str
    source: Path
    cache: Path


class Runs:
    """A runner of cases in the folder `work`; one thread may use it.

    Args:
        work: folder that contains `models` (`make_models`).
        first: the tree that begins runs which the other resumes.
        commands: the starter of commands.

    Args:
        work: with `models`, see `make_models`.
        first: the tree that begins what is resumed.
    """

    def __init__(self, work: Path, first: Tree, commands: Commands) -> None:
        """Hold the folder, the first tree and the starter of commands."""
        self.work, self.first, self.commands = work, first, commands

    def run(self, case: Case, tree: Tree) -> Outcome:
        """Run a case and return its outcome.

        Raises:
            RefusedError: a command ended with an error.
        """
        folder = self.work / "runs" / re.sub(r"\W+", "-", f"{case.name} {tree.cache.name}")
        prepare(case, folder, self.work / "models")
        if case.kind == "real clients":
            self._run_served(case, tree, folder)
        elif case.kind == "resumed" and tree is not self.first:
            self._run_resumed(case, tree, folder)
        else:
            self._done(tree, "simulate", folder, *format_words(case.settings), "--output", "run")
        return read_outcome(folder / "run")

    def _start(self, tree: Tree, command: str, folder: Path, *given: str, log: Path) -> int:
        module, environment = f"fedpeft.{command}", {"FEDPEFT_CACHE": str(tree.cache)}
        return self.commands.start(tree.source, module, given, folder, log, environment)

    def _done(self, tree: Tree, command: str, folder: Path, *given: str) -> None:
        log = folder / f"{command}.log"
        self._end(self._start(tree, command, folder, *given, log=log), log)

    def _end(self, process: int, log: Path) -> None:
        code = self.commands.wait(process)
        if code:
            said = log.read_text(errors="replace").strip().splitlines() or [f"exit code {code}"]
            raise RefusedError(said[-1])

    def _run_resumed(self, case: Case, tree: Tree, folder: Path) -> None:
        """Interrupt the first tree's run after a round, and resume it with the other tree."""
        given = format_words(case.settings)
        log, rounds = folder / "begun.log", folder / "run" / "rounds.jsonl"
        process = self._start(self.first, "simulate", folder, *given, "--output", "run", log=log)
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and not (rounds.exists() and rounds.read_text().count("\n") > 1):
            time.sleep(0.01)
        os.kill(process, signal.SIGINT)
        if self.commands.wait(process) != INTERRUPTED:
            raise RefusedError(f"the run could not be interrupted after its first round, see {log}")
        self._done(tree, "simulate", folder, "--resume", "run")

    def _run_served(self, case: Case, tree: Tree, folder: Path) -> None:
        """Run a server, and clients with their own data."""
        self._done(tree, "certs", folder, "--folder", "certs", "--clients", ",".join(CLIENTS))
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        given = [*format_words(case.settings), "--listen", address, "--eval-data", "dataset"]
        logs = {name: folder / f"{name}.log" for name in ("serve", *CLIENTS)}
        running = {"serve": self._start(tree, "serve", folder, *given, "--output", "run", log=logs["serve"])}
        for name in CLIENTS:
            own = ["--data", f"{name}.jsonl", "--certs", f"certs/clients/{name}", "--state", "state", "--threads", "1"]
            running[name] = self._start(tree, "join", folder, "--server", address, *own, log=logs[name])
        try:
            for name, process in running.items():
                self._end(process, logs[name])
        except RefusedError:
            for process in running.values():
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            raise


def prepare(case: Case, folder: Path, models: Path) -> None:
    """Make the empty folder of a run, and in it the files that settings may name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "models").symlink_to(models)
    for name, text in {**write_own_rows(), **case.files}.items():
        (folder / name).write_text(text)
    if case.kind == "real clients":
        data = load_dataset("tiny")
        assert data.label_names is not None
        assert data.train.labels is not None
        ends = [sum(ROWS[: k + 1]) for k in range(len(ROWS))]
        for name, count, end in zip(CLIENTS, ROWS, ends, strict=True):
            rows = (
                {"text": data.train.inputs[i], "label": data.label_names[data.train.labels[i]]}
                for i in range(end - count, end)
            )
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

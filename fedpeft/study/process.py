"""The process that a study's runs are forked from: it has imported the libraries and done nothing else.

So a run starts at once, and runs share the libraries' memory. Processes end with their parent: this process ends with
its study, and runs end with this process. Even a killed study leaves no run behind that would go on writing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from filelock import FileLock, Timeout

from fedpeft.errors import RunError
from fedpeft.machine.processes import hide_main_module, ignore_interrupts

ORPHAN_SECONDS = 60
"""Seconds that a process may take to notice that its study has ended."""

REAP_SECONDS = 0.1
"""Interval between two checks for ended runs, in seconds."""


@dataclass(frozen=True)
class Program:
    """The functions that prepare and execute runs.

    The starting process imports both by module and name.

    Attributes:
        load: imports the modules that all runs need, before the first fork.
        main: executes one run in its fork; takes the flags of fedpeft simulate, returns the exit code.
    """

    load: Callable[[], None]
    main: Callable[[list[str]], int]


@dataclass(frozen=True)
class Start:
    """A request to begin or continue a run: its settings, folder, log file, extra flags and GPUs."""

    settings: Path
    folder: Path
    log: Path
    flags: tuple[str, ...] = ()
    gpus: str = ""


class Starter:
    """The study's side: starts runs and receives their exit codes."""

    def __init__(self, program: Program) -> None:
        """Start the process that will fork the runs of `program`."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, program))
        with hide_main_module(), ignore_interrupts():
            self._process.start()
        theirs.close()

    def start(self, run: Start) -> None:
        """Start a run.

        Raises:
            RunError: the starting process is gone.
        """
        try:
            self._connection.send(run)
        except OSError as error:
            raise _create_killed_error() from error

    def collect_exit_codes(self) -> dict[Path, int]:
        """Return the exit codes of runs that ended since the last call, by folder; negative: a signal.

        Raises:
            RunError: the starting process is gone, and the runs with it.
        """
        codes: dict[Path, int] = {}
        try:
            while self._connection.poll():
                folder, code = self._connection.recv()
                codes[folder] = code
        except (EOFError, OSError) as error:
            raise _create_killed_error() from error
        return codes

    def close(self) -> None:
        """End the remaining runs; they can be resumed."""
        self._connection.close()
        self._process.join()


BEGINS = "loading a run's settings"
"""The first line that each process writes to a run's log. A resumed run appends to the log."""

LOG_TAIL_BYTES = 65536


def _create_killed_error() -> RunError:
    return RunError(
        "FP5213 the process that starts the runs was killed (often: out of memory); the same command continues"
    )


def _serve(study: Connection, program: Program) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study handles Ctrl-C and ends its runs in order
    program.load()

    alive, held = os.pipe()  # never written to: the pipe closes when this process ends
    run = _fork_runs(study)
    if run is not None:  # this is the fork
        os.close(held)
        study.close()
        sys.exit(_run(run, program, alive))


def _fork_runs(study: Connection) -> Start | None:
    """Fork one process per run until the study is gone; return the run in each fork, and None in this process."""
    running: dict[int, Path] = {}
    with suppress(EOFError, OSError):  # the study is gone
        while True:
            if study.poll(REAP_SECONDS):
                run: Start = study.recv()
                pid = os.fork()
                if pid == 0:
                    return run
                running[pid] = run.folder
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    study.send((running.pop(pid), os.waitstatus_to_exitcode(status)))
    for pid in running:
        os.kill(pid, signal.SIGTERM)
    for pid in running:
        os.waitpid(pid, 0)
    return None


def _run(run: Start, program: Program, alive: int) -> int:
    """Execute a run in the process that was forked for it, and return its exit code."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["COLUMNS"] = "200"
    if run.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = run.gpus
    log = os.open(run.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(log, f"{BEGINS}\n".encode())
    for stream in (1, 2):
        os.dup2(log, stream)
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()

    try:
        with FileLock(f"{run.folder}.lock", timeout=ORPHAN_SECONDS):
            begun = (run.folder / "config.toml").is_file()
            what = ("--resume", str(run.folder)) if begun else (str(run.settings), "--output", str(run.folder))
            return program.main([*what, *run.flags])
    except Timeout:
        print(f"error: {RunError(f'FP5240 another process is still writing to {run.folder}')}")
        return 2


def _end_with(pipe: int) -> None:
    os.read(pipe, 1)
    os._exit(1)


def describe_failure(code: int, log: Path) -> str:
    """Return why the last process of a log failed: its error, its last line, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"FP5214 killed by {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")
    text = log.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace")
    lines = [line.strip() for line in text.rpartition(f"{BEGINS}\n")[2].splitlines() if line.strip()]
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    return errors[-1] if errors else f"FP5215 exit code {code}: {lines[-1] if lines else 'it printed nothing'}"

"""Processes that are started from within somebody's script."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from fedpeft.machine.processes import same_sigterm, uninterrupted
from fedpeft.studies.process import Program, Starter


def ignores_interrupts(process: int) -> bool:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    [mask] = [line.split()[1] for line in lines if line.startswith("SigIgn")]
    return bool(int(mask, 16) >> (signal.SIGINT - 1) & 1)


def nothing() -> None:
    pass


def no_run(flags: list[str]) -> int:
    return 0


def test_ctrl_c_does_nothing_to_the_process_that_starts_runs_from_its_first_moment_on() -> None:
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    starter = Starter(Program(nothing, no_run))
    try:
        assert starter._process.pid is not None
        assert ignores_interrupts(starter._process.pid)  # it has hardly begun to import anything
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        starter.close()
        signal.signal(signal.SIGINT, before)
    assert starter._process.exitcode == 0


def test_what_was_to_come_of_ctrl_c_comes_again() -> None:
    before = signal.getsignal(signal.SIGINT)
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_waits_for_what_must_not_be_interrupted_and_is_nobody_else_s() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGTERM)
            assert not came
        assert came == [signal.SIGTERM]
        with same_sigterm():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray has its own
        os.kill(os.getpid(), signal.SIGTERM)
        assert came == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_does_nothing_to_the_process_that_forks_workers_from_its_first_moment_on() -> None:
    """In a process of its own, since there is one such server in each; it has hardly begun to import anything."""
    program = (
        "import signal\n"
        "from fedpeft.machine.processes import forkserver\n"
        "from multiprocessing import forkserver as server\n"
        "from tests.machine.test_processes import ignores_interrupts\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "forkserver()\n"
        "server.ensure_running()\n"
        "assert ignores_interrupts(server._forkserver._forkserver_pid)\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

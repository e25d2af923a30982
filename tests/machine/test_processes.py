"""Processes that are started from within somebody's script."""

from __future__ import annotations

import os
import signal
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

"""Processes that are started from within somebody's script."""

from __future__ import annotations

import signal
from pathlib import Path

from fedpeft.study.process import Program, Starter


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

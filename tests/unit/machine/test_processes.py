"""Processes that are started from within somebody's script."""

from __future__ import annotations

import os
import signal

from fedpeft.machine.processes import ignore_interrupts, restore_sigterm


def test_what_was_to_come_of_ctrl_c_comes_again() -> None:
    before = signal.getsignal(signal.SIGINT)
    with ignore_interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_waits_for_what_must_not_be_interrupted_and_is_nobody_else_s() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with ignore_interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
            assert not came
        assert came == [signal.SIGTERM]
        with restore_sigterm():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray has its own
        os.kill(os.getpid(), signal.SIGTERM)
        assert came == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)

"""Processes that are started from within somebody's script."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.medium
def test_ctrl_c_does_nothing_to_the_process_that_forks_workers_from_its_first_moment_on() -> None:
    """In a process of its own, since there is one such server in each; it has hardly begun to import anything."""
    program = (
        "import signal\n"
        "from fedpeft.machine.processes import get_forkserver\n"
        "from multiprocessing import forkserver as server\n"
        "from tests.runs.machine.test_processes import ignores_interrupts\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "get_forkserver()\n"
        "server.ensure_running()\n"
        "assert ignores_interrupts(server._forkserver._forkserver_pid)\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

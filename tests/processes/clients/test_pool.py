"""The pool of worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from fedpeft.reporting.records import Records
from tests.unit.clients.test_pool import TINY


def alive(group: int) -> list[psutil.Process]:
    """Return the processes of a process group that have not ended."""
    found = []
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.pid) == group:
                found.append(process)
    return found


@pytest.mark.slow
def test_pressing_ctrl_c_twice_ends_the_run_and_its_workers(tmp_path):
    """The second press finds the workers being ended, in the middle of their training."""
    folder = tmp_path / "run"
    words = ["--" + name.replace("_", "-") + f"={value}" for name, value in {**TINY, "workers": 2}.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedpeft.simulate", *words, "--rounds=100000", f"--output={folder}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it in background jobs
    )
    try:
        deadline = time.monotonic() + 120
        while len(Records(folder).read("rounds.jsonl")) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        for pause in (0.02, 0.0):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(pause)
        shown, _ = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "interrupted; continue with" in shown
        assert "Traceback" not in shown
        while (left := alive(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not left
    finally:
        process.kill()

"""What is charged, over kills, resumes and spent budgets: never less than was released, and nothing twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from fedpeft.privacy.engine import LEDGER
from fedpeft.privacy.ledger import POPULATION
from fedpeft.reporting.records import Records
from tests.privacy.small_runs import TINY, trained
from tests.runs.privacy.test_charged_rounds import charges


@pytest.mark.slow
def test_kill_9_at_any_time_never_loses_a_charge(tmp_path):
    """Killed again and again, the ledger holds a charge for every round that left a trace, and resumes end the run."""
    folder, words = tmp_path / "run", ["--" + k.replace("_", "-") + f"={v}" for k, v in {**TINY, "rounds": 12}.items()]
    command = [sys.executable, "-m", "fedpeft.simulate"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = [*command, *words, "--privacy", "user_dp(noise_multiplier=1)", "--output", str(folder)]
    for kills, wanted in enumerate((2, 7)):
        process = subprocess.Popen(
            first if not kills else [*command, "--resume", str(folder)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (folder / LEDGER).exists() and len((folder / LEDGER).read_text().splitlines()) > wanted:
                break
            time.sleep(0.005)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        traces = len(Records(folder).read("rounds.jsonl"))
        assert len({c["round"] for c in charges(folder)}) >= traces
    shutil.copytree(folder, tmp_path / "copy")
    simulation, progress = trained(tmp_path / "copy", rounds=12, privacy="user_dp(noise_multiplier=1)")
    assert progress.round == 12
    [(_, releases)] = simulation.protection.ledger.spent[POPULATION].items()
    assert releases == len(charges(tmp_path / "copy")) >= 12

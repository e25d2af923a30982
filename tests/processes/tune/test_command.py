"""The command: what it shows before it trains; and whole searches over real runs, one of them killed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedpeft import simulate
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.study.results import read_run
from fedpeft.tune.__main__ import Command
from fedpeft.wiring.config import read_config
from tests.refusals import refuses
from tests.runs.tune.test_command import RATES, TINY
from tests.unit.tune.test_command import written

HYBRIDS = (
    "trials = 2\nstartup = 2\nbudget = {parameters = 2_500}\n" + TINY + "[hybrid.lora]\nrank = [1, 2, 4]\nalpha = 8\n"
    "[hybrid.bottleneck]\ndim = [2, 4]\n"
)


@pytest.mark.medium
def test_a_command_s_help_needs_no_optuna():
    assert Command.__doc__
    code = "import sys; sys.modules['optuna'] = None; import fedpeft.tune"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def process(path: Path, folder: Path) -> subprocess.Popen:
    words = [sys.executable, "-m", "fedpeft.tune", str(path), "--output", str(folder)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def completed(path: Path, folder: Path) -> str:
    search = process(path, folder)
    said, _ = search.communicate()
    assert search.returncode == 0, said
    return said


@pytest.mark.slow
def test_a_search_that_is_killed_in_a_trial_ends_as_one_that_is_not(tmp_path):
    path = written(tmp_path, RATES)
    said = completed(path, tmp_path / "whole")
    assert any(line.startswith("fedpeft simulate --clients 6") for line in said.splitlines())
    search = process(path, tmp_path / "killed")
    while not (tmp_path / "killed" / "trials" / "0001" / "rounds.jsonl").exists():
        assert search.poll() is None
        time.sleep(0.05)
    os.killpg(search.pid, signal.SIGKILL)
    search.communicate()
    assert not (tmp_path / "killed" / "report.html").exists()
    completed(path, tmp_path / "killed")
    tables = [(tmp_path / name / "trials.csv").read_text(encoding="utf-8") for name in ("whole", "killed")]
    assert tables[0] == tables[1]
    best = read_config(tmp_path / "whole" / "best.toml")
    rows = list(csv.DictReader(tables[0].splitlines()))
    done = [row for row in rows if row["state"] == "finished"]
    assert float(min(done, key=lambda row: float(row["value"]))["learning_rate"]) == best.learning_rate


@pytest.mark.slow
def test_hybrids_within_a_budget_are_searched(tmp_path):
    path = written(tmp_path, HYBRIDS)
    completed(path, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "trials.csv").read_text(encoding="utf-8").splitlines()))
    trained = [row for row in rows if row["state"] != "never trained"]
    assert len(trained) == 2
    assert all(int(row["parameters"]) <= 2_500 for row in trained)
    assert all(int(row["parameters"]) > 2_500 for row in rows if row["state"] == "never trained" and row["parameters"])
    assert read_config(tmp_path / "out" / "best.toml").peft.count("layers=(")
    runs = sorted((tmp_path / "out" / "trials").glob("*.toml"))
    assert len(runs) == 2
    check_untested(runs[0].with_suffix(""))


def check_untested(run: Path) -> None:
    """Check that a trial is scored on validation examples, and on test examples only after a resume."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert (summary["accuracy_of"], summary["baseline_accuracy"]) == ("global model, validation rows", None)
    assert summary["accuracy"] == pytest.approx(summary["validation_accuracy"], abs=0.03)
    assert not (run / "predictions.npz").exists()
    assert FinishedRun.read(run).files.is_dir()
    with refuses("FP5216", f"simulate --resume {run}"):
        read_run(run)
    assert simulate.main(["--resume", str(run)]) == 0
    assert read_run(run).summary["accuracy_of"] == "global model, test rows"

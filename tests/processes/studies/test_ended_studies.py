"""Studies that are ended in the middle, in order and not, and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from fedpeft.study.__main__ import main
from fedpeft.study.runner import count_finished_rounds
from tests.refusals import has_error
from tests.unit.studies.test_study import BASE, study_file


def wait_until(condition: object, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@pytest.mark.fast
def test_one_study_at_a_time_goes_on_in_a_folder_that_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(study_file(tmp_path, "seeds = [0]\n" + BASE)), "--output", str(tmp_path / "out")]
    runs = tmp_path / "out" / "runs"
    runs.mkdir(parents=True)
    with FileLock(runs / "study.lock"):
        assert main(arguments) == 2
    assert has_error(capsys.readouterr().err, "FP5226")
    (runs / "study.lock").unlink(missing_ok=True)
    (runs / "study.lock").mkdir()  # as where nothing may be written
    assert main(arguments) == 2
    assert has_error(capsys.readouterr().err, "FP5187")


METHODS = """[axes]
method = [
    {label = "short", rounds = 1},
    {label = "impossible", rounds = 2, strategy = "flora", server_optimizer = "adam"},
    {label = "long", rounds = 60},
]
"""


@pytest.mark.slow
def test_sigterm_ends_a_study_with_its_runs_in_order(tmp_path: Path) -> None:
    base = BASE.replace("rounds = 4\n", "rounds = 60\n")
    path = study_file(tmp_path, f'name = "trial"\nseeds = [0]\n{base}')
    study = subprocess.Popen(
        [sys.executable, "-m", "fedpeft.study", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wait_until(lambda: study.poll() is not None or list(tmp_path.glob("runs/*/rounds.jsonl")), 300)
    started = psutil.Process(study.pid).children(recursive=True)
    study.terminate()
    said = study.communicate(timeout=60)[0].decode()
    assert study.returncode == 130, said
    assert said.rstrip().endswith("interrupted; the same command continues")
    assert not psutil.wait_procs(started, timeout=30)[1], "a run outlives its study"


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One run is finished, one has failed and one goes on when the study is killed; the same command does the rest."""
    base = BASE.replace("rounds = 4\n", "").replace("cohort = 3\n", "")
    path = study_file(tmp_path, 'name = "trial"\nseeds = [0]\n' + base + METHODS)
    arguments = [str(path), "--jobs", "2"]
    results = tmp_path / "results.jsonl"
    first = subprocess.Popen(
        [sys.executable, "-m", "fedpeft.study", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )

    def amid() -> bool:
        assert first.poll() is None, first.communicate()[0].decode()
        recorded = results.read_text() if results.exists() else ""
        going = any(count_finished_rounds(folder) >= 3 for folder in tmp_path.glob("runs/long*/"))
        return '"finished"' in recorded and '"failed"' in recorded and going

    wait_until(amid, 300)
    started = psutil.Process(first.pid).children(recursive=True)
    assert started
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert not psutil.wait_procs(started, timeout=30)[1], "a run outlives its study"
    kept = results.read_bytes()
    with open(results, "ab") as file:
        file.write(b'{"config": {"clients": 6, "ro')

    assert main(arguments) == 1  # one run has failed
    assert "was cut short by a kill" in capsys.readouterr().out
    assert results.read_bytes().startswith(kept)
    lines = {line["point"]["method"]: line for line in map(json.loads, results.read_text().splitlines())}
    assert len(results.read_text().splitlines()) == 3
    assert {name: line["status"] for name, line in lines.items()} == {
        "short": "finished", "impossible": "failed", "long": "finished",
    }  # fmt: skip
    assert "FP1335" in lines["impossible"]["reason"]
    assert [r["round"] for r in lines["long"]["rounds"]] == list(range(61))
    assert "continuing after round" in next(tmp_path.glob("runs/long*.log")).read_text()
    assert "FP1335" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "accuracy_bytes.svg").exists()

    before = results.read_bytes()
    assert main(arguments) == 1
    assert "nothing to do" in capsys.readouterr().out
    assert results.read_bytes() == before

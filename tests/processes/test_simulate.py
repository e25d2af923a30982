"""The main job on the tiny data set, as a user runs it: processes, files, kills, resumes."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fedpeft.simulate import main
from tests.runs.test_simulate import LONG, same, start


def wait_for_rounds(folder: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        file = folder / "rounds.jsonl"
        if file.exists() and file.read_text().count("\n") > count:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {count} rounds; stderr: {process.stderr.read() if process.poll() is not None else ''}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "more"),
    [
        (signal.SIGKILL, ()),
        (signal.SIGINT, ()),
        (signal.SIGTERM, ("--workers", "2")),
        (signal.SIGKILL, ("--codec", "ef14 | tiny")),
    ],
)
def test_a_killed_run_resumes_to_the_identical_adapter(tmp_path, how, more):
    """With the codec, clients hold a memory and a version of the state."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole, *more).wait(180) == 0
    process = start(cut, *more)
    wait_for_rounds(cut, 5, process)
    process.send_signal(how)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    assert b"Traceback" not in complaints
    assert b"leaked" not in complaints
    done = (cut / "rounds.jsonl").read_text().count("\n")
    assert done < LONG, "the run was over before it could be interrupted"
    assert not (cut / "summary.json").exists()
    assert main(["--resume", str(cut)]) == 0
    assert same(whole, cut)
    strip = ("seconds", "training_seconds", "aggregation_seconds")
    lines = [[json.loads(x) for x in (f / "rounds.jsonl").read_text().splitlines()] for f in (whole, cut)]
    assert [{k: v for k, v in r.items() if k not in strip} for r in lines[0]] == [
        {k: v for k, v in r.items() if k not in strip} for r in lines[1]
    ]


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_run(tmp_path):
    import psutil

    process = start(tmp_path / "run", "--workers", "2")
    wait_for_rounds(tmp_path / "run", 2, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]

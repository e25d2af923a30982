"""One of each thing that users do with programs of their own, small enough for the fast tier."""

from __future__ import annotations

import json
import signal

import pytest

from fedpeft.simulate import main as simulate
from fedpeft.study.__main__ import main as study
from tests.fleet import distance
from tests.mortal import start_killed_run, started
from tests.runs.test_simulate import TINY, same
from tests.unit.studies.test_study import study_file


@pytest.mark.fast("one real server with two real clients")
def test_two_real_clients_end_with_the_adapter_of_the_simulation(fleet):
    made = fleet(names=("a", "b"), rounds=1)
    address = f"127.0.0.1:{made.port}"
    processes = [started(made.folder, "serve", ["run.toml", "--listen", address, "--output", "run"], ())]
    for name in ("a", "b"):
        words = ["--server", address, "--data", f"{name}.jsonl", "--certs", f"certs/clients/{name}",
                 "--state", "state", "--threads", "1"]  # fmt: skip
        processes.append(started(made.folder, name, words, ()))
    try:
        assert simulate([str(made.folder / "run.toml"), "--output", str(made.folder / "simulated")]) == 0
        for process in processes:
            process.join(300)
        assert [process.exitcode for process in processes] == [0, 0, 0], made.logs()
    finally:
        for process in processes:
            process.kill()
    assert distance(made.folder / "run", made.folder / "simulated") < 1e-6


@pytest.mark.fast("one kill and resume")
def test_a_run_that_is_killed_once_resumes_to_the_identical_adapter(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = start_killed_run([*TINY, "--output", str(cut)], 2)
    assert simulate([*TINY, "--output", str(whole)]) == 0
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert (cut / "rounds.jsonl").read_text().count("\n") == 3
    assert simulate(["--resume", str(cut)]) == 0
    assert same(whole, cut)


@pytest.mark.fast("one study")
def test_a_study_runs_every_point_once(tmp_path):
    text = '[base]\ndataset = "tiny"\ntokens = 16\nclients = 2\nrounds = 1\nlocal_work = "steps(1)"\n'
    path = study_file(tmp_path, 'name = "small"\nseeds = [0]\n' + text + '[axes]\nstrategy = ["fedit", "flora"]\n')
    for _ in range(2):
        assert study([str(path), "--jobs", "1"]) == 0
        lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
        assert [(line["point"]["strategy"], line["status"]) for line in lines] == [
            ("fedit", "finished"),
            ("flora", "finished"),
        ]

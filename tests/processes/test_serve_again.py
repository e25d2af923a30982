"""A server's run that is continued: what is finished, half scored, or no server's, and how others are told to do it."""

from __future__ import annotations

import json

import pytest

from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.reporting.run_folder import SERVERS_OPTIONS, resume_command
from fedpeft.serve import main as serve
from fedpeft.study.results import read_run
from fedpeft.wiring.config import RunConfig
from tests.fleet import Fleet
from tests.refusals import has_error, refuses


@pytest.fixture
def run(tmp_path):
    """Return the folder of an unfinished run, with a blank in its path."""
    folder = tmp_path / "a run"
    folder.mkdir()
    (folder / "config.toml").write_text(RunConfig(dataset="tiny", model="tiny", clients=2, peft="lora").to_toml())
    return folder


@pytest.mark.fast
@pytest.mark.parametrize("module", ["serve", "simulate"])
def test_an_unfinished_run_is_continued_by_what_began_it_and_its_path_is_quoted(run, module):
    if module == "serve":
        (run / SERVERS_OPTIONS).write_text("")
    assert resume_command(run) == f"fedpeft {module} --resume '{run}'"
    for read in (read_run, FinishedRun.read):
        with refuses("FP5182", run, f"fedpeft {module} --resume '{run}'"):
            read(run)


@pytest.mark.fast
def test_a_server_does_not_go_on_with_a_simulation(run, capsys):
    assert serve(["--resume", str(run)]) == 2
    said = capsys.readouterr().err
    assert has_error(said, "FP5183", "fedpeft simulate --resume")


@pytest.mark.fast
def test_a_finished_federation_waits_for_nobody(run, capsys):
    (run / SERVERS_OPTIONS).write_text("")
    (run / "summary.json").write_text(json.dumps({"accuracy": 0.5}))
    assert serve(["--resume", str(run)]) == 0
    assert f"{run} is finished: its rounds are done" in capsys.readouterr().out


@pytest.mark.slow
def test_a_server_whose_rounds_are_done_scores_what_is_left_without_clients(tmp_path):
    made = Fleet(tmp_path, names=("a",), rounds=1, peft="lora")
    server = made.serve("--eval-data", "dataset")
    made.join("a")
    assert made.end(server) == 0, made.logs()
    summary = tmp_path / "run" / "summary.json"
    before = json.loads(summary.read_text())
    summary.unlink()
    server = made.serve()
    assert made.end(server, seconds=120) == 0, made.logs()
    assert json.loads(summary.read_text())["accuracy"] == before["accuracy"]

"""A finished language model is asked in the form that the columns of its rows have told, where no setting names one."""

from __future__ import annotations

import json

from fedpeft.commands.predict import main as predict
from fedpeft.reporting.command import MISTAKE
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.simulate import main as simulate
from tests.refusals import has_error
from tests.unit.run.test_asked_as_tuned import COLUMNS, written


def test_a_finished_run_asks_as_it_was_tuned_whatever_became_of_its_rows(tmp_path, capsys):
    file = written(tmp_path, COLUMNS["alpaca"])
    words = ["--model", "tiny_lm", "--clients", "2", "--cohort", "all", "--rounds", "1", "--workers", "1"]
    words += ["--local-work", "steps(1)", "--partition", "iid", "--measure", "validation(keep=last)"]
    assert simulate([*words, "--dataset", f"file:{file}", "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert predict([str(tmp_path / "run"), "Ask 7", "--new-tokens", "2"]) == 0, "tiny_lm has no chat template"
    summary = tmp_path / "run" / "summary.json"
    told = json.loads(summary.read_text())
    assert told.pop("template") == "alpaca"
    summary.write_text(json.dumps(told))  # as of an earlier version
    assert FinishedRun.read(tmp_path / "run").template == "alpaca"
    file.unlink()
    assert FinishedRun.read(tmp_path / "run").template is None
    capsys.readouterr()
    assert predict([str(tmp_path / "run"), "Ask 7"]) == MISTAKE
    assert has_error(capsys.readouterr().err, "FP3023", "the model's chat template")
    summary.write_text(json.dumps(told | {"template": "alpaca"}))
    assert FinishedRun.read(tmp_path / "run").template == "alpaca"

"""The command: what it shows before it trains; and whole searches over real runs, one of them killed."""

from __future__ import annotations

import json
import math

import pytest
from rich.console import Console

from fedpeft import simulate
from fedpeft.reporting.records import Records
from fedpeft.tune.__main__ import main
from fedpeft.wiring.config import RunConfig
from tests.tune.made import BASE
from tests.unit.tune.test_command import written

TINY = BASE + 'dtype = "fp32"\nlocal_work = "steps(2)"\n'
RATES = (
    'trials = 4\nstartup = 2\nreduction = 2\npruner = "halving"\n' + TINY + "[search]\n"
    'learning_rate = {low = 1e-4, high = 1e-2, log = true}\nserver_optimizer = ["sgd", "momentum"]\n'
)


def test_trials_that_all_keep_their_start_are_said_not_to_be_told_apart(tmp_path, capsys):
    text = (
        RATES.replace("trials = 4", "trials = 2")
        .replace("rounds = 4", "rounds = 2")
        .replace("low = 1e-4, high = 1e-2", "low = 1e-12, high = 1e-11")
    )
    assert main([str(written(tmp_path, text)), "--output", str(tmp_path / "found")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 finished trials have exactly this value" in said


# ------------------------------------------------------------------------------------------------------ real runs


@pytest.mark.slow
def test_a_run_that_keeps_its_start_says_what_that_has_on_the_validation_rows(tmp_path):
    tiny = {"dataset": "tiny", "model": "tiny", "tokens": 16, "clients": 4, "cohort": 2, "dtype": "fp32", "workers": 1}
    config = RunConfig(
        **tiny, rounds=1, head="zero", local_work="steps(1)", optimizer="sgd(max_norm=0)", safeguard="none",
        learning_rate=30.0,
    )  # fmt: skip
    simulate.simulate(config, tmp_path / "run", False, Console(quiet=True))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    lines = Records(tmp_path / "run").read("rounds.jsonl")
    assert [line["round"] for line in lines] == [1]
    assert summary["kept_round"] == 0
    assert summary["validation_loss"] == pytest.approx(math.log(4), abs=0.2)  # it knows nothing of four classes
    assert summary["validation_loss"] < lines[0]["loss"]
    assert 0 <= summary["validation_accuracy"] <= 1

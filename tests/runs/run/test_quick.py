"""`--quick`: a first answer, which says that it is no result."""

from __future__ import annotations

import json
import tomllib

import pytest

from fedpeft.config import RunConfig
from fedpeft.simulate import main, parse
from fedpeft.wiring.quick import shorten_config
from tests.refusals import has_error


@pytest.mark.fast
def test_quick_means_fewer_rows_rounds_and_tokens_and_nothing_else():
    config, _, _, _ = parse(["--quick", "--strategy", "flexlora"])
    assert config == RunConfig(
        strategy="flexlora", dataset="sample(of=reviews, rows=1000, test_rows=500)", rounds=4, tokens=64
    )


@pytest.mark.fast
def test_what_is_less_already_stays():
    config = shorten_config(RunConfig(rounds=1, tokens=16, dataset="file:rows.csv"))
    assert (config.rounds, config.tokens) == (1, 16)
    assert config.dataset == "sample(of='file:rows.csv', rows=1000, test_rows=500)"


@pytest.fixture
def run(finished_run):
    return finished_run(dataset="tiny", clients=4, cohort=2, rounds=9, quick=True)


def test_configuration_and_summary_say_it(run):
    summary, config = json.loads((run / "summary.json").read_text()), tomllib.loads((run / "config.toml").read_text())
    assert summary["sampled"] is True
    assert summary["rounds"] == 4
    assert config["dataset"].startswith("sample(of=tiny")


def test_the_summary_says_where_the_time_went(run):
    summary = json.loads((run / "summary.json").read_text())
    phases = summary["phases"]
    assert {"loading libraries", "reading the rows", "loading the model", "rounds"} <= set(phases)
    assert sum(phases.values()) <= summary["seconds"]
    assert sum(phases.values()) >= 0.9 * summary["seconds"]


def test_a_run_that_is_continued_keeps_its_settings(run, capsys):
    assert main(["--resume", str(run), "--quick"]) == 2
    assert has_error(capsys.readouterr().err, "FP1407", "--quick")

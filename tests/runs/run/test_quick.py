"""`--quick`: a preview that gains on its start and on the linear probe, and that is marked as a preview."""

from __future__ import annotations

import json
import tomllib

import pytest

from experiments.quick.__main__ import START
from fedpeft.simulate import main, parse
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.quick import shorten_config
from tests.refusals import has_error


@pytest.mark.fast
def test_the_default_data_set_keeps_its_training_examples():
    config, _, _, _ = parse(["--quick", "--strategy", "flexlora"])
    assert config == RunConfig(
        strategy="flexlora",
        dataset="sample(of=reviews, rows=16000, test_rows=2000)",
        rounds=6,
        tokens=64,
        measure="validation(every=6)",
    )


@pytest.mark.fast
def test_measurements_of_the_user_s_stay():
    assert shorten_config(RunConfig(measure="validation(every=1)")).measure == "validation(every=1)"


@pytest.mark.fast
@pytest.mark.parametrize(("clients", "rows"), [(20, 3200), (0, 16000), ("profiles.toml", 16000)])
def test_few_clients_share_fewer_examples(clients, rows):
    assert shorten_config(RunConfig(clients=clients)).dataset == f"sample(of=reviews, rows={rows}, test_rows=2000)"


@pytest.mark.fast
def test_other_data_sets_are_cut():
    config = shorten_config(RunConfig(dataset="file:rows.csv"))
    assert config == RunConfig(dataset="sample(of='file:rows.csv', rows=1000, test_rows=500)", rounds=4, tokens=64)


@pytest.mark.fast
@pytest.mark.parametrize("dataset", ["reviews", "file:rows.csv"])
def test_what_is_less_already_stays(dataset):
    config = shorten_config(RunConfig(rounds=1, tokens=16, dataset=dataset))
    assert (config.rounds, config.tokens) == (1, 16)


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
    assert {"loading libraries", "reading the examples", "loading the model", "rounds"} <= set(phases)
    assert sum(phases.values()) <= summary["seconds"]
    assert sum(phases.values()) >= 0.9 * summary["seconds"]


@pytest.mark.slow
def test_a_preview_ends_three_points_above_the_probe_and_its_start(tmp_path):
    """Seed 100 is not one of those in experiments/quick. The start is scored on the same test examples."""
    assert main(["--quick", "--seed", "100", "--output", str(tmp_path / "run")]) == 0
    assert main(["--quick", *START, "--output", str(tmp_path / "start")]) == 0
    summary, start = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "start"))
    assert summary["kept_round"] > 0
    assert summary["accuracy"] >= summary["baseline_accuracy"] + 0.03
    assert summary["accuracy"] >= start["accuracy"] + 0.03


def test_a_run_that_is_continued_keeps_its_settings(run, capsys):
    assert main(["--resume", str(run), "--quick"]) == 2
    assert has_error(capsys.readouterr().err, "FP1407", "--quick")

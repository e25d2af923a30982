"""The exploratory table of rules: pairs, the best older rule, and the studies that it reads."""

import dataclasses

import numpy as np
import pytest

from experiments.rules_2026.__main__ import FOLDER, OLDER, build_table, format_difference, group_runs
from fedpeft.study.results import OWN_ROWS, Result, pack
from fedpeft.study.study_file import read_study

ROWS = 40


def result(method, seed, right):
    """Return a finished run that is right on the first `right` of 40 test examples."""
    correct = (np.arange(ROWS) < right).astype(float)
    summary = {"accuracy": right / ROWS, "uplink_bytes": 1_000_000, "downlink_bytes": 2_000_000}
    config = {"dataset": "reviews", "strategy": method, "seed": seed}
    return Result(config, "finished", seed, point={"method": method}, summary=summary,
                  rounds=({"seconds": 60.0}, {"seconds": 30.0}), correct=pack(correct))  # fmt: skip


def test_methods_are_paired_with_the_baseline_and_the_best_older_rule():
    scores = {"fedit": (20, 22), "flexlora": (24, 26), "fedrot_lora": (21, 21), "flora_na": (28, 30)}
    methods = group_runs([result(m, seed, right) for m, each in scores.items() for seed, right in enumerate(each)])
    table = build_table(methods)
    cells = list(zip(*(list(column.cells) for column in table.columns), strict=True))
    assert [row[0] for row in cells] == list(scores)
    assert str(table.columns[4].header) == "against flexlora"
    by_name = {row[0]: row for row in cells}
    assert by_name["flora_na"][2].startswith("72.50")
    assert by_name["flora_na"][3].startswith("+20.00 [")
    assert by_name["flora_na"][4].startswith("+10.00 [")
    assert by_name["fedit"][3] == by_name["flexlora"][4] == ""
    assert by_name["fedit"][5:] == ("3.00", "1.5")


def test_the_last_run_of_a_seed_counts_and_other_seeds_are_not_paired():
    methods = group_runs([result("fedit", 0, 10), result("fedit", 0, 30), result("fedrpca", 1, 30)])
    assert methods["fedit"][0].summary["accuracy"] == 0.75
    assert format_difference(methods["fedrpca"], methods["fedit"], own=False) == ""


def test_models_of_clients_own_are_scored_on_the_examples_of_clients_not_on_the_shared_test_set():
    def own_result(method, seed, share):
        run = result(method, seed, 20)  # on the test set all are alike
        own = {} if method == "global, fedit" else {"accuracy_of": OWN_ROWS}
        trust = {"calibration": {"clients": {"before": {"accuracy": share}}}}
        return dataclasses.replace(run, summary={**run.summary, **own, "trust": trust})

    shares = {"global, fedit": (0.80, 0.82), "ditto": (0.78, 0.80), "potara": (0.81, 0.85)}
    table = build_table(group_runs([own_result(m, s, x) for m, each in shares.items() for s, x in enumerate(each)]))
    cells = {row[0]: row for row in zip(*(list(column.cells) for column in table.columns), strict=True)}
    assert str(table.columns[2].header) == "accuracy on own examples (%)"
    assert cells["potara"][2].startswith("83.00")
    assert cells["potara"][3] == "+2.00 [-10.71, +14.71]"  # Student's t with one degree of freedom: 12.71
    assert cells["ditto"][3] == "-2.00 [-2.00, -2.00]"
    assert cells["potara"][4].startswith("+4.00")


@pytest.mark.parametrize("preset", ["small", "mixed", "personal"])
def test_each_comparison_has_an_older_rule_and_five_seeds(preset):
    study = read_study(FOLDER / "study.toml", preset)
    labels = [value.label for value in study.axes["method"]]
    assert any(label in OLDER for label in labels)
    assert study.seeds == (0, 1, 2, 3, 4)
    assert study.baseline["method"] in labels


def test_all_compared_methods_are_tuned_alike_on_another_seed():
    compared, tuned = (read_study(FOLDER / "study.toml", preset) for preset in ("small", "tuning"))
    assert [v.label for v in compared.axes["method"]] == [v.label for v in tuned.axes["method"]]
    assert len(tuned.axes["learning_rate"]) == 5
    assert not set(tuned.seeds) & set(compared.seeds)

"""Runs whose labels are numbers, or several a row: executors, resuming, what is refused, and the walk of a user."""

from __future__ import annotations

import pytest

from fedpeft.data.rows import load_dataset
from fedpeft.errors import ConfigError, DataError, PrivacyError
from tests.refusals import pattern_of, refuses
from tests.runs.simulation.test_target_runs import KINDS, data_of, simulation


@pytest.mark.parametrize(
    ("kind", "given", "error", "words"),
    [
        ("numbers", {"privacy": "dp_sgd(epsilon=8)", "head": "zero"}, PrivacyError, ("FP7112",)),
        ("numbers", {"privacy": "user_dp(epsilon=8)", "head": "private_ridge"}, ConfigError, ("FP1013",)),
        (
            "numbers",
            {"head": "centroids"},
            ConfigError,
            ("FP1013", "these examples have numbers; use --head ridge or zero"),
        ),
        ("labels", {"head": "centroids"}, ConfigError, ("FP1013", "several labels each; use --head ridge or zero")),
        ("labels", {"partition": "dirichlet"}, DataError, ("FP3089",)),
        ("numbers", {"drift": "label_shift"}, ConfigError, ("FP1341", "numbers have")),
        ("labels", {"drift": "label_shift"}, ConfigError, ("FP1341", "several labels have")),
        ("numbers", {"measure": "calibration"}, ConfigError, ("FP1311", "regression")),
        ("labels", {"measure": "calibration"}, ConfigError, ("FP1311",)),
        ("labels", {"measure": "robustness"}, ConfigError, ("FP1313", "robustness")),
        ("numbers", {"measure": "laplace"}, ConfigError, ("FP1317",)),
        ("numbers", {"measure": "forgetting(dataset=tiny)"}, ConfigError, ("FP1345",)),
        ("numbers", {"measure": "evaluate(questions='x')"}, ConfigError, ("FP1355", "predicts numbers")),
        ("labels", {"attack": "label_flip"}, ConfigError, ("FP1412", "rows.jsonl")),
        ("numbers", {"peft": "prompt_ensemble"}, ConfigError, ("FP1217",)),
    ],
)
def test_what_has_no_meaning_without_classes_is_one_sentence(kind, given, error, words, tmp_path):
    with pytest.raises(error, match=pattern_of(*words)) as caught:
        simulation(tmp_path / "x", dataset=data_of(kind, tmp_path), **given)
    assert "\n" not in str(caught.value)


def test_tasks_are_told_apart_by_classes(tmp_path):
    data = data_of("numbers", tmp_path)
    with refuses("FP1101"):
        load_dataset(f"tasks({data}, classes=1)")


@pytest.mark.parametrize("privacy", ["dp_sgd(epsilon=8)", "user_dp(epsilon=8)"])
@pytest.mark.parametrize("kind", KINDS)
def test_under_privacy_the_head_that_nobody_names_starts_at_zero(kind, privacy, tmp_path):
    data = f"{data_of(kind, tmp_path)[:-1]}, mean=500, deviation=200)" if kind == "numbers" else data_of(kind, tmp_path)
    made = simulation(tmp_path / "x", dataset=data, privacy=privacy, head="auto")
    assert made.config.head == "zero"
    assert not made.setup.has_private_start

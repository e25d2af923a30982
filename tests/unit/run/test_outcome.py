"""The sentence at the top of a summary compares the saved adapter with the linear probe."""

from __future__ import annotations

import pytest

from fedpeft.reporting.outcome import describe_outcome

OF = "test rows"


def describe(**changes):
    summary = {"metric": "accuracy", "accuracy": 0.86, "accuracy_of": OF, "baseline_accuracy": 0.81, "kept_round": 8}
    return describe_outcome(summary | {"targets": {"rows": 2000}} | changes, OF)


def test_a_gain_is_stated_in_points_with_both_numbers():
    assert describe() == (
        "The test accuracy of the saved adapter, 86.0%, is 5.0 points above that of the frozen base model's linear "
        "probe, 81.0%."
    )


def test_a_loss_is_stated_as_plainly_as_a_gain():
    assert "is 5.0 points below that of" in describe(accuracy=0.76)


@pytest.mark.parametrize(("rows", "is_clear"), [(100, False), (400, False), (600, True)])
def test_a_difference_within_the_error_of_few_examples_is_not_called_one(rows, is_clear):
    # two standard errors are 10.5, 5.2 and 4.3 points
    assert ("above" in describe(targets={"rows": rows})) is is_clear
    assert (
        f"can't be distinguished from that of the frozen base model's linear probe, 81.0%, on {rows} test"
        in (describe(targets={"rows": rows}))
    ) is not is_clear


def test_a_kept_start_is_stated():
    start = "No round was clearly better than the start, so the start is kept."
    assert start in describe(kept_round=0)
    assert start not in describe()


@pytest.mark.parametrize(
    "changes", [{"baseline_accuracy": None}, {"accuracy": float("nan")}, {"accuracy_of": "clients' own rows"}]
)
def test_nothing_is_compared_that_is_not_of_the_same_examples(changes):
    assert describe(**changes) == ""


def test_other_metrics_keep_their_names():
    assert describe(metric="label_accuracy").startswith("The test label accuracy of the saved adapter")
    assert "is 5.0 points above" in describe(metric="skill", targets={"rows": 4})


@pytest.mark.parametrize("score", [0.8, 0.8004])
def test_a_difference_that_rounds_to_nothing_is_called_equal(score):
    summary = {"accuracy": score, "baseline_accuracy": 0.8, "accuracy_of": "test", "metric": "f1", "kept_round": 3}
    assert "equals that of" in describe_outcome(summary, "test")

"""The line of a model card on privacy: unit, mechanism, and numbers that are never rounded down."""

from __future__ import annotations

import pytest

from fedpeft.reporting.exports.model_card import describe_privacy, round_up

SECTION = {"mechanism": "dp_sgd", "unit": "training row", "test_noise": False, "not_covered": ["byte counts"]}


def test_epsilon_comes_with_its_unit_mechanism_and_delta():
    told = describe_privacy({"epsilon": 7.9946, "dp_delta": 9.2593e-05, "privacy": SECTION})
    assert told.startswith("epsilon 8 at delta 9.3e-05 per training row, by `dp_sgd`")
    assert "not_covered" in told
    assert "test noise" not in told


def test_test_noise_is_named():
    assert "protects nothing" in describe_privacy(
        {"epsilon": 1.0, "dp_delta": 1e-5, "privacy": SECTION | {"test_noise": True}}
    )


def test_without_epsilon_the_adapter_may_reveal_examples():
    assert describe_privacy({"epsilon": None}).startswith("none")


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(9.2593e-05, 1, "0.0001"), (3.0303e-4, 2, "0.00031"), (2.0, 3, "2"), (7.994, 3, "8"), (0.0, 2, "0")],
)  # fmt: skip
def test_numbers_are_rounded_up(value, digits, text):
    assert round_up(value, digits) == text
    assert float(round_up(value, digits)) >= value

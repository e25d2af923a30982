"""Verdicts of `fedpeft attack` that follow from the settings: small clients, spent budgets, sums before round 1."""

from __future__ import annotations

import pytest

from fedpeft.attack import hostile_clients, in_sums, unequal_instructions
from fedpeft.attack.outcome import Outcome
from fedpeft.attack.suite import ATTACKS, judge, reduce_settings
from fedpeft.wiring.config import RunConfig

VOID = "FP5252 the sum over the clients before round 1 is void: FP6162 there would be too little noise"
SPENT = "the privacy budget is spent after 0 rounds: the run ends here"


def attack(run):
    return next(attack for attack in ATTACKS if attack.run is run)


def outcome(refusals=(), lines=(), reports=0, timed_out=False, read=()):
    return Outcome(dict(read), 0, reports, dict(refusals), (0, 0), list(lines), None, timed_out)


@pytest.mark.parametrize(
    ("privacy", "attacked"),
    [
        ("dp_sgd(epsilon=8)", "dp_sgd(epsilon=8, start=0.5)"),
        ("local_dp(epsilon=8)", "local_dp(epsilon=8, start=0.5)"),
        ("dp_sgd(epsilon=8, start=1)", "dp_sgd(epsilon=8, start=1)"),
        ("dp_sgd(noise_multiplier=4)", "dp_sgd(noise_multiplier=4)"),
        ("distributed_dp(epsilon=8, rows=99)", "distributed_dp(epsilon=8, rows=99)"),
        ("", ""),
    ],
)
def test_the_few_examples_of_an_attack_leave_rounds_to_attack(privacy, attacked):
    assert reduce_settings(RunConfig(privacy=privacy), ATTACKS[0]).privacy == attacked


def test_a_void_sum_before_round_1_that_the_plan_needs_is_a_documented_limit():
    config = RunConfig(privacy="distributed_dp(epsilon=8, rows=99)")
    for run in (hostile_clients.garbage, hostile_clients.low_order_keys):
        result = judge(attack(run), outcome({"server": VOID}), config)
        assert result.holds
        assert result.verdict.startswith("not prevented")


def test_without_a_round_there_is_nothing_to_attack():
    config = RunConfig(privacy="dp_sgd(epsilon=8, start=1)")
    for run in (hostile_clients.garbage, unequal_instructions.other_model):
        assert judge(attack(run), outcome(lines=[SPENT]), config).holds
    trained = outcome(lines=[SPENT], reports=5)
    assert judge(attack(unequal_instructions.other_model), trained, config).verdict == "BROKEN"


@pytest.mark.parametrize("run", [hostile_clients.leaves, unequal_instructions.other_alpha, in_sums.one_more])
def test_an_attack_that_has_not_ended_is_undecided_unless_it_has_read_an_update(run):
    config = RunConfig(privacy="secure_sum")
    result = judge(attack(run), outcome(timed_out=True), config)
    assert result.verdict == "undecided: no end within 180 s; run it again on a free machine"
    assert (result.holds, result.decided) == (False, False)
    read = outcome(timed_out=True, read={"edge-0": 1.0})
    assert judge(attack(unequal_instructions.other_alpha), read, config).verdict == "BROKEN"

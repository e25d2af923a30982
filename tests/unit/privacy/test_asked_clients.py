"""How many clients a plan asks, and what a cohort that the user names has to say."""

from __future__ import annotations

import math

import pytest
import torch

from fedpeft.parts.families import MECHANISMS
from fedpeft.privacy.mechanisms import user_dp
from fedpeft.privacy.noise import RunKey
from fedpeft.privacy.server_noise import compute_correlated_noise
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.privacy.small_runs import QUIET
from tests.refusals import refuses
from tests.unit.privacy.test_private_plan import exposure

LEFT = {"dataset": "tiny", "tokens": 32, "clients": 100, "rounds": 20, "workers": 1, "dtype": "fp32",
        "peft": "linear_probe", "privacy": "user_dp(epsilon=60)"}  # fmt: skip


def made(folder, **given):
    return Simulation(RunConfig(**{**LEFT, **given}), folder, ConsoleObserver(QUIET))


@pytest.mark.parametrize("budget", [1, 8])
@pytest.mark.parametrize("cohort", [10, 500, 2000, 5000])
def test_secret_cohorts_have_to_say_what_their_noise_leaves(budget, cohort):
    """Counted: the mean of all rounds' sums over what noise moves it by."""
    federation = exposure(rows=2, clients=5000, entries=1000, rounds=20, cohort=cohort)
    mechanism = MECHANISMS.build(f"user_dp(epsilon={budget}, start=0.5)")
    counted = 20 * cohort / (mechanism.multiplier(federation) * math.sqrt(20 * 1000))
    assert counted == pytest.approx(mechanism.training_signal(federation), rel=0.02)


@pytest.mark.medium
def test_fewer_clients_never_say_more():
    mechanism = MECHANISMS.build("user_dp(epsilon=8)")
    signals = [
        mechanism.training_signal(exposure(rows=2, clients=5000, rounds=20, cohort=c)) for c in (5, 50, 500, 5000)
    ]
    assert signals == sorted(signals)


@pytest.mark.parametrize("cohort", [10, 500, 2500])
def test_cohorts_that_take_turns_have_to_say_what_their_related_noise_leaves(cohort):
    """Drawn: what the noise of a run's rounds adds up to, as the server takes it."""
    federation = exposure(rows=2, clients=5000, entries=1000, rounds=20, cohort=cohort)
    mechanism = MECHANISMS.build("user_dp(epsilon=8, noise=banded, start=0.5)")
    factor, like = mechanism.noise_factor(federation), {"a": torch.zeros(4000)}
    rounds = [(round_number, 0) for round_number in range(1, 21)]
    summed = sum(compute_correlated_noise(factor, rounds[:n], RunKey(bytes(32)), like)["a"] for n in range(1, 21))
    moved = mechanism.multiplier(federation) * float(summed.double().std()) * math.sqrt(1000)
    assert 20 * cohort / moved == pytest.approx(mechanism.training_signal(federation), rel=0.05)


@pytest.mark.medium
def test_all_are_asked_where_nobody_names_a_cohort(tmp_path):
    simulation = made(tmp_path / "a")
    assert (simulation.config.cohort, simulation.sampler.size) == ("all", 100)
    assert simulation.protection.trains
    again = Simulation(simulation.config, tmp_path / "b", ConsoleObserver(QUIET))
    assert again.config == simulation.config
    assert made(tmp_path / "c", cohort=50).config.cohort == 50
    assert made(tmp_path / "d", privacy="user_dp(epsilon=60, noise=banded)").config.cohort == LEFT.get("cohort", "auto")
    assert made(tmp_path / "e", learning_rate=0.01).config.cohort == "auto"  # who says something of training says all


def test_of_very_many_a_tenth_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(user_dp, "MOST_ASKED", 99)
    assert made(tmp_path / "a").sampler.size == 10
    monkeypatch.setattr(user_dp, "MOST_ASKED", 100)
    assert made(tmp_path / "b").sampler.size == 100


@pytest.mark.parametrize("noise", ["independent", "banded"])
def test_a_cohort_that_noise_drowns_leaves_the_start_as_it_is(noise, tmp_path):
    """Of 5,000 clients 10 a round took 20 Newsgroups from 73 % to 19, and to 24."""
    simulation = made(tmp_path, cohort=2, privacy=f"user_dp(epsilon=60, noise={noise})")
    assert not simulation.protection.trains
    assert "no round of training is planned" in simulation.protection.describe_plan()


def test_an_adapter_that_noise_drowns_is_not_trained_where_there_is_no_head(tmp_path):
    given = {"dataset": "tiny_lm", "privacy": "dp_sgd(epsilon=8)", "clients": 4, "peft": "auto"}
    with refuses("FP1375", "causal_lm"):
        made(tmp_path, **given)


ROWS = {"tokens": 16, "clients": 6, "peft": "lora", "privacy": "dp_sgd(epsilon=8)"}


@pytest.mark.medium
def test_all_are_asked_for_steps_of_a_head_alone(tmp_path):
    simulation = made(tmp_path / "a", **ROWS)
    assert (simulation.config.peft, simulation.config.cohort, simulation.sampler.size) == ("linear_probe", "all", 6)
    again = Simulation(simulation.config, tmp_path / "b", ConsoleObserver(QUIET))
    assert again.config == simulation.config
    assert made(tmp_path / "c", **ROWS, cohort=2).config.cohort == 2


def test_a_tenth_is_asked_for_steps_of_an_adapter(tmp_path):
    heard = made(tmp_path / "a", **ROWS | {"privacy": "dp_sgd(epsilon=1e5)"})
    assert (heard.config.peft, heard.config.cohort) == ("lora", "auto")

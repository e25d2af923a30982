"""Very many clients: what is drawn, asked and stored does not grow with them."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from rich.console import Console

from fedpeft.parts.families import MECHANISMS
from fedpeft.peft.adapter import AdapterShape
from fedpeft.privacy.mechanism import CohortForm
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.rounds import sampling
from fedpeft.rounds.sampling import (
    DealtCohorts,
    FixedSize,
    ReachableClients,
    create_population,
    select_measured_clients,
)
from fedpeft.simulate import main
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.profiles import Profile, Profiles, ProfileTable, compute_chances, create_profiles, list_distinct
from tests.refusals import has_error, refuses

TINY = {"dataset": "tiny", "tokens": 16, "partition": "resample(rows=4)", "cohort": 3, "rounds": 2, "workers": 1,
        "dtype": "fp32", "peft": "lora(rank=2, layers=1)", "local_work": "steps(1)"}  # fmt: skip


def flags(**settings):
    return [f"--{name.replace('_', '-')}={value}" for name, value in (TINY | settings).items()]


def test_under_privacy_and_where_labels_are_attacked_it_is_refused(tmp_path):
    quiet = ConsoleObserver(Console(quiet=True))
    for privacy in ("dp_sgd(epsilon=8)", "secure_sum"):
        with refuses("FP7118"):
            Simulation(RunConfig(**TINY | {"clients": 9, "privacy": privacy, "head": "zero"}), tmp_path, quiet)
    with refuses("FP1413"):
        Simulation(RunConfig(**TINY | {"clients": 9, "attack": "label_flip"}), tmp_path, quiet)


def test_all_are_measured_until_they_are_very_many(monkeypatch):
    monkeypatch.setattr(sampling, "MEASURED", 10)
    monkeypatch.setattr(sampling, "FEW", 12)
    assert select_measured_clients(12, 0) == list(range(12))
    some = select_measured_clients(1000, 0)
    assert len(some) == len(set(some)) == 10
    assert some == sorted(some) == select_measured_clients(1000, 0) != select_measured_clients(1000, 1)


def test_profiles_are_kept_by_group_and_read_by_client():
    few, many = Profile(AdapterShape(2, 4)), Profile(AdapterShape(8, 16), participation=0.5)
    made = Profiles([(few, 2), (many, 3)])
    assert list(made) == [few, few, many, many, many]
    assert len(made) == 5
    assert made[-1] == made[4] == many
    assert made[1:3] == [few, many]
    assert repr(made) == repr((few, few, many, many, many))
    assert list_distinct(made) == list_distinct(list(made)) == [few, many]
    assert compute_chances(made) == (1.0, 1.0, 0.5, 0.5, 0.5)
    assert compute_chances(Profiles([(few, 1_000_000)])) == ()
    with pytest.raises(IndexError):
        made[5]


def test_a_million_equal_clients_are_one_group():
    form = AdapterShape(8, 16)
    assert create_profiles([], 1_000_000, form).groups == ((Profile(form), 1_000_000),)
    tables = [ProfileTable(count=2, rank=4), ProfileTable(count=999_998)]
    assert [count for _, count in create_profiles(tables, 1_000_000, form).groups] == [2, 999_998]


def test_drawing_a_cohort_takes_as_long_from_a_million():
    began = time.process_time()
    for round_number in range(20):
        assert len(set(FixedSize(1_000_000, 100).draw(0, round_number))) == 100
    assert time.process_time() - began < 2.0  # measured: 0.002 s of processor time


def test_models_of_clients_own_are_not_scored_on_rows_that_all_share(tmp_path, capsys):
    assert main([*flags(clients=4, strategy="ditto"), "--output", str(tmp_path / "run")]) != 0
    assert has_error(capsys.readouterr().err, "FP1417")


@pytest.mark.parametrize(("clients", "size"), [(100, 10), (11, 4), (5, 5), (7, 1), (10, 6)])
def test_dealt_cohorts_come_about_equally_often(clients, size):
    rounds = 23
    drawn = [DealtCohorts(clients, size).draw(3, round_number) for round_number in range(1, rounds + 1)]
    assert all(len(set(cohort)) == size and cohort == sorted(cohort) for cohort in drawn)
    often = np.bincount(np.concatenate(drawn), minlength=clients)
    decks = -(-rounds // (clients // size))
    assert often.max() <= decks
    assert often.sum() == rounds * size
    if clients % size == 0:
        assert often.min() >= rounds // (clients // size)
    assert clients == size or drawn[0] != drawn[clients // size]


def test_those_who_are_away_are_replaced_by_those_who_come_next():
    present = [0, 2, 3, 5, 7, 8]
    sampler = ReachableClients(DealtCohorts(10, 4), lambda: present)
    cohorts = [sampler.draw(0, round_number) for round_number in range(1, 9)]
    assert all(len(cohort) == 4 and set(cohort) <= set(present) for cohort in cohorts)
    assert ReachableClients(DealtCohorts(10, 4), lambda: range(10)).draw(0, 2) == DealtCohorts(10, 4).draw(0, 2)
    assert ReachableClients(DealtCohorts(10, 4), lambda: [6]).draw(0, 2) == [6]


def asked_in(cohorts):
    """How often each client has been asked, as a ledger of these cohorts would say."""
    return lambda before: Counter(client for cohort in cohorts[: before - 1] for client in cohort)


@pytest.mark.parametrize(("clients", "size", "rounds"), [(10, 2, 20), (100, 10, 20), (20, 5, 40), (11, 4, 30)])
def test_where_some_are_away_nobody_stands_in_for_them_again_and_again(clients, size, rounds):
    """A fifth is away in each round. Who stood in kept its own place as well: of 10 clients one came 7 times, not 4."""
    decks = -(-rounds // (clients // size))
    for seed in range(5):
        random, cohorts = np.random.default_rng(seed), []
        dealt = DealtCohorts(clients, size, asked_in(cohorts))
        for round_number in range(1, rounds + 1):
            present = np.flatnonzero(random.random(clients) < 0.8).tolist()
            cohorts.append(dealt.draw_among(present, seed, round_number))
            assert cohorts[-1] == dealt.draw_among(present, seed, round_number)  # as a server that was restarted says
            assert len(cohorts[-1]) == min(size, len(present))
            assert set(cohorts[-1]) <= set(present)
        assert max(asked_in(cohorts)(rounds + 1).values()) <= decks + 1


@pytest.mark.parametrize(("clients", "size"), [(10, 2), (11, 4), (5, 5)])
def test_a_complete_fleet_is_dealt_as_a_simulation_is(clients, size):
    plain = DealtCohorts(clients, size)
    cohorts = [plain.draw(0, round_number) for round_number in range(1, 30)]
    asked = DealtCohorts(clients, size, asked_in(cohorts))
    assert [
        ReachableClients(asked, lambda: range(clients)).draw(0, round_number) for round_number in range(1, 30)
    ] == cohorts


def test_secret_cohorts_are_not_dealt():
    """Whoever is not in one of a deck's cohorts is in another: coins that are to be secret would not be."""

    class Secret(type(MECHANISMS.build("dp_sgd"))):
        cohort_form = CohortForm.SECRET

    assert type(create_population(12, 3, (), Secret(epsilon=8.0))) is FixedSize


def test_a_budget_of_rows_deals_its_cohorts_and_secret_or_weighted_ones_stay_drawn():
    def kind(text, weights=()):
        return type(create_population(12, 3, weights, MECHANISMS.build(text)))

    assert kind("dp_sgd(epsilon=8)") is kind("local_dp(epsilon=8)") is DealtCohorts
    assert kind("dp_sgd(epsilon=8)", (1.0, 0.5) * 6) is kind("dp_sgd(noise_multiplier=1)") is FixedSize
    assert kind("user_dp(epsilon=8)") is kind("none") is kind("distributed_dp(epsilon=8)") is FixedSize

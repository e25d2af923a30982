"""Membership inference: who is compared with whom, and what the worst client is by chance."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.audit.membership import _select_clients, compute_auc, measure_membership
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig


def test_the_area_is_a_rank_statistic():
    members, others = np.array([0.1, 0.3]), np.array([0.2, 0.4, 0.5])
    expected = np.mean([[m < o for o in others] for m in members])
    assert compute_auc(members, others, np.ones(3)) == pytest.approx(expected)
    assert compute_auc(members, others, np.array([1.0, 0.0, 0.0])) == pytest.approx(0.5)


def test_members_of_a_class_that_nobody_else_has_are_left_out():
    """Half of a shard is in such a class, whose losses are higher: nothing leaks, and the area was 0.25."""
    random = np.random.default_rng(0)
    labels = np.r_[np.tile(np.repeat([0, 1], 1000), 4), np.zeros(4000, int)]
    whose = np.repeat([0, 1, 2, 3, -1], [2000] * 4 + [4000])
    told = measure_membership(random.random(len(labels)) + labels, labels, whose, 0)
    assert told.mean == pytest.approx(0.5, abs=0.03)
    assert (told.members, told.left_out) == (8000, 4000)
    assert "4,000 of 8,000 members left out" in told.note
    none = measure_membership(random.random(6), np.array([1, 1, 1, 0, 0, 0]), np.array([0, 0, 1, -1, -1, -1]), 0)
    assert (len(none.areas), none.left_out) == (0, 3)
    assert np.isnan([none.mean, none.worst_area, none.by_chance]).all()


def test_the_bound_on_chance_is_exceeded_in_5_percent_of_draws():
    """Nothing leaks: the worst client is above its mean by chance in half of the draws, and seldom above the bound."""
    random = np.random.default_rng(3)
    whose = np.repeat([0, 1, 2, 3, -1], [60] * 5)
    told = [measure_membership(random.random(300), np.zeros(300, int), whose, seed) for seed in range(40)]
    assert all(one.high_by_chance > one.by_chance for one in told)
    assert sum(one.worst_area > one.by_chance for one in told) > 10
    assert sum(one.worst_area > one.high_by_chance for one in told) <= 6


@pytest.mark.medium
def test_the_worst_of_many_small_clients_is_told_beside_what_it_is_by_chance():
    """0.5 is no guess of a maximum. Twenty times new rows: nothing leaks, and the worst is as it is by chance."""
    random = np.random.default_rng(1)
    whose = np.repeat([*range(50), -1], [15] * 50 + [300])
    labels = random.integers(0, 2, len(whose))
    told = [measure_membership(random.random(len(whose)) + labels, labels, whose, seed) for seed in range(12)]
    worst, by_chance = np.mean([one.worst_area for one in told]), np.mean([one.by_chance for one in told])
    assert worst > 0.58
    assert worst == pytest.approx(by_chance, abs=0.02)
    leaks = measure_membership(random.random(len(whose)) - 0.5 * (whose >= 0), labels, whose, 0)
    assert leaks.mean > 0.8
    assert leaks.worst_area > leaks.by_chance + 0.15


def test_rows_that_clients_hold_out_are_no_members(tmp_path, observer):
    given = {"dataset": "tiny", "tokens": 16, "clients": 4, "workers": 1, "peft": "lora(layers=1)", "dtype": "fp32"}
    simulation = Simulation(RunConfig(**given, strategy="fedper"), tmp_path, observer)
    members = np.concatenate(_select_clients(simulation))
    simulation.close()
    assert sorted(members) == sorted(np.concatenate([simulation.select_training_rows(client) for client in range(4)]))
    assert len(members) < 0.9 * len(simulation.rows.train)

"""The reference on pooled rows: the best rate is kept, and a try that diverges ends early."""

import math

import numpy as np
import pytest
import torch
from fedpeft.clients.pool import Worker

from fedpeft.simulation.pooled import RATES, find_best_pooled, train_on_pooled_rows
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.runs.simulation.test_run_strategies import settings


def descent(rate, curvature=1.0):
    """Gradient descent on curvature * x^2 / 2: the step diverges where rate * curvature > 2."""

    def step(states, piece):
        seen.append((piece, sorted(states)))
        return {r: {"x": s["x"] - rate * r * curvature * s["x"]} for r, s in states.items()}

    seen: list[tuple[int, list[float]]] = []
    return step, seen


def loss(state):
    return float(state["x"].square())


START = {"x": torch.tensor(1.0, dtype=torch.float64)}


def test_the_rate_with_the_least_loss_is_kept():
    step, seen = descent(0.8)
    state, rate = find_best_pooled(START, 8, step, loss, lambda: None)
    assert rate == 1.0
    assert float(state["x"]) == pytest.approx(0.2**8)
    assert [piece for piece, _ in seen] == list(range(1, 9))


def test_a_try_that_diverges_ends_after_a_quarter():
    step, seen = descent(3.0)
    _, rate = find_best_pooled(START, 8, step, loss, lambda: None)
    assert rate == 0.25  # 3 * 0.25 = 0.75; with 1.5 the error changes sign and halves, with 3 it doubles
    assert seen[1] == (2, sorted(RATES))
    assert all(rates == [0.25, 0.5] for _, rates in seen[2:])


def test_if_all_diverge_lower_rates_are_tried_and_progress_goes_on():
    step, seen = descent(100.0)
    told = []
    state, rate = find_best_pooled(START, 8, step, loss, lambda: told.append(1))
    assert rate == 1 / 128  # 100 / 128 = 0.78
    assert float(state["x"]) == pytest.approx((1 - 100 / 128) ** 8)
    assert [piece for piece, _ in seen] == [1, 2, 1, 2, 1, 2, *range(3, 9)]
    assert len(told) == 8


def test_where_no_rate_leads_below_the_start_it_is_the_start():
    step, _ = descent(1e9)
    assert find_best_pooled(START, 8, step, loss, lambda: None) == (START, 0.0)


def test_a_try_that_ends_in_no_number_is_not_the_best():
    def step(states, piece):
        return {r: {"x": s["x"] * (math.nan if r == 1.0 and piece == 8 else 0.9)} for r, s in states.items()}

    assert find_best_pooled(START, 8, step, loss, lambda: None)[1] == 0.5


def test_where_all_tries_end_in_no_number_it_is_the_start():
    def step(states, piece):
        return {r: {"x": s["x"] * (math.nan if piece == 8 else 0.9)} for r, s in states.items()}

    assert find_best_pooled(START, 8, step, loss, lambda: None) == (START, 0.0)


def test_an_asynchronous_step_is_worth_the_work_of_those_it_hears(tmp_path, observer, monkeypatch):
    pieces, train = [], Worker.train

    def counted(worker, job):
        pieces.append(len(job.rows))
        return train(worker, job)

    monkeypatch.setattr(Worker, "train", counted)
    for rule in ("fedit", "fedbuff(buffer=2)"):
        simulation = Simulation(RunConfig(**settings(rule, cohort=6, rounds=1)), tmp_path, observer)
        train_on_pooled_rows(simulation, simulation.setup.start)
        simulation.close()
    assert pieces[0] == pytest.approx(3 * pieces[-1], abs=3)


@pytest.mark.medium
@pytest.mark.parametrize("given", [{"strategy": "fedper"}, {"measure": "calibration(rows=clients)"}], ids=str)
def test_rows_that_clients_hold_out_are_not_in_the_pool_and_no_part_of_the_work(given, tmp_path, observer, monkeypatch):
    seen, train = [], Worker.train

    def noted(worker, job):
        seen.append(job.rows)
        return train(worker, job)

    monkeypatch.setattr(Worker, "train", noted)
    given = settings("fedit", cohort=6, local_work="epochs(1)") | given
    simulation = Simulation(RunConfig(**given), tmp_path, observer)
    train_on_pooled_rows(simulation, simulation.setup.start)
    simulation.close()
    own = np.concatenate([simulation.select_training_rows(client) for client in range(6)])
    assert len(own) < 0.9 * len(simulation.rows.train)
    assert set(np.concatenate(seen)) == set(own)
    assert len(seen[0]) == len(own), "what all clients go through in a round"


def test_a_single_piece_is_enough():
    step, _ = descent(0.8)
    assert find_best_pooled(START, 1, step, loss, lambda: None)[1] == 1.0


def test_progress_is_told_of_each_piece():
    step, _ = descent(0.8)
    told = []
    find_best_pooled(START, 5, step, loss, lambda: told.append(1))
    assert len(told) == 5

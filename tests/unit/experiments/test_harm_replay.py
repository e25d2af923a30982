"""The rule by which a later state replaces the start, on the recorded rounds of experiments/harm."""

from __future__ import annotations

import pytest

from experiments.harm.replay import VALIDATION_ROWS, Rule, find_changes, read_runs
from fedpeft.reporting.observer import Metrics
from fedpeft.rounds.best_state import BestState


def states_of(run):
    return [state for state in run.rounds if state["loss"] is not None]


def test_the_rule_of_these_runs_is_replayed_to_the_round():
    assert all(
        Rule(None).kept(states_of(run), VALIDATION_ROWS.get(run.point["task"], 10**6)) == run.summary["kept_round"]
        for run in read_runs()
    )


def test_the_rule_that_is_replayed_is_a_server_s():
    for run in read_runs():
        rows = VALIDATION_ROWS.get(run.point["task"], 10**6)
        first, *later = (
            BestState(state["round"], Metrics(state["loss"], state["accuracy"], predictions=rows), {}, {})
            for state in states_of(run)
        )
        best = first
        for state in later:
            best = best.after(state, by_accuracy=True)
        assert best.round == Rule(0.1).kept(states_of(run), rows)


def test_ties_that_go_to_any_lower_loss_do_harm_and_to_a_clearly_lower_one_none():
    _, any_lower = find_changes(Rule(0.0, one_more=False))
    _, clearly = find_changes(Rule(0.1))
    assert (len(any_lower), len(clearly)) == (21, 6)
    assert sum(any_lower) / 21 == pytest.approx(-0.16, abs=0.005)
    assert sum(clearly) / 6 == pytest.approx(0.26, abs=0.005)

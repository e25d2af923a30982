"""Which state a run keeps."""

import math
from dataclasses import replace

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from fedpeft.reporting.observer import Metrics
from fedpeft.rounds.best_state import BestState

measured = st.builds(Metrics, st.floats(0, 10), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))


@hypothesis.given(st.lists(measured, min_size=1, max_size=8), st.booleans())
def test_the_best_state_is_the_best_and_the_first_of_equals_and_the_start_where_none_beats_it(found, by_accuracy):
    states = [BestState(i, metrics, {"x": torch.tensor([float(i)])}, {}) for i, metrics in enumerate(found)]
    best = states[0]
    for other in states[1:]:
        best = best.after(other, by_accuracy)

    def quality(metrics):
        return (metrics.accuracy, -metrics.loss) if by_accuracy else (-metrics.loss,)

    expected = max(range(len(found)), key=lambda i: (quality(found[i]), -i))
    start, chosen = found[0], found[expected]
    if by_accuracy and chosen.accuracy == start.accuracy and chosen.loss > 0.9 * start.loss:
        expected = 0
    assert best.round == expected
    assert float(best.adapter["x"]) == best.round
    assert best.since == len(found) - 1 - best.round
    assert not by_accuracy or best.metrics.accuracy >= found[0].accuracy


@pytest.mark.parametrize("by_accuracy", [False, True])
def test_a_start_whose_loss_is_not_a_number_is_not_the_best(by_accuracy):
    start = BestState(0, Metrics(math.nan, math.nan), {}, {})
    better = BestState(1, Metrics(3.0, 0.1), {}, {})
    assert start.after(BestState(1, Metrics(math.nan, math.nan), {}, {}), by_accuracy).round == 0
    assert start.after(better, by_accuracy) is better
    assert better.after(replace(start, round=2), by_accuracy).round == 1


def test_the_best_state_returns_from_a_checkpoint():
    state = BestState(7, Metrics(0.1 + 0.2, 1 / 3), {"head.weight": torch.randn(2, 3)}, {"layer/0": torch.randn(2)}, 2)
    again = BestState.from_tensors(state.to_tensors())
    assert (again.round, again.metrics, again.since) == (7, state.metrics, 2)
    assert torch.equal(again.adapter["head.weight"], state.adapter["head.weight"])
    assert torch.equal(again.residual["layer/0"], state.residual["layer/0"])
    assert BestState.from_tensors({}) is None


def test_one_row_more_is_too_little_to_leave_the_start_for():
    start, *others = (BestState(i, Metrics(1.0 - i / 20, (80 + i) / 100, predictions=100), {}, {}) for i in range(4))
    assert [start.after(other, by_accuracy=True).round for other in others] == [0, 2, 3]
    assert [start.after(other, by_accuracy=False).round for other in others] == [1, 2, 3]
    assert others[0].after(others[1], by_accuracy=True).round == 2, "between trained states a row is enough"
    unknown = replace(others[0], metrics=replace(others[0].metrics, predictions=0.0))
    assert start.after(unknown, by_accuracy=True).round == 1


@pytest.mark.parametrize("predictions", [0.0, 100.0])
@pytest.mark.parametrize(
    ("loss", "more", "kept"),
    [
        (0.003, 0, 1),  # of 0.063 at the start: nothing is left to get right, and the model is far surer
        (0.0567, 0, 1),
        (0.0569, 0, 0),  # lower by less than a tenth
        (0.063, 0, 0),
        (0.1, 0, 0),
        (0.003, -1, 0),
        (0.003, 1, 1),
        (math.nan, 0, 0),
    ],
)
def test_a_tie_with_the_start_goes_to_a_clearly_lower_loss(loss, more, kept, predictions):
    start = BestState(0, Metrics(0.063, 0.9, predictions=predictions), {}, {})
    later = BestState(1, Metrics(loss, 0.9 + more / 100, predictions=predictions), {}, {})
    assert start.after(later, by_accuracy=True).round == kept


def test_a_tie_between_later_states_goes_to_the_lower_loss():
    first, lower = (BestState(i, Metrics(loss, 0.9, predictions=100), {}, {}) for i, loss in ((1, 0.5), (2, 0.499)))
    assert first.after(lower, by_accuracy=True).round == 2
    assert lower.after(replace(first, round=3), by_accuracy=True).round == 2


def test_no_loss_at_the_start_stays():
    start = BestState(0, Metrics(0.0, 1.0, predictions=100), {}, {})
    assert start.after(BestState(1, Metrics(0.0, 1.0, predictions=100), {}, {}), by_accuracy=True).round == 0

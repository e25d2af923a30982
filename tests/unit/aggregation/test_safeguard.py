"""What validation rows decide: which steps count, what is kept of a run, and when it ends."""

from __future__ import annotations

import math

import hypothesis
import pytest
from hypothesis import strategies as st

from fedpeft.aggregation.safeguard import SafeguardState
from fedpeft.aggregation.safeguards.undo import Undo
from fedpeft.parts.families import SAFEGUARDS

# ---------------------------------------------------------------------------------------------------------- the rule


LOSSES = st.one_of(st.floats(0, 100), st.just(math.nan), st.just(math.inf))


@hypothesis.given(st.lists(LOSSES), st.floats(0, 2), st.floats(0.01, 1))
def test_what_counts_lies_below_the_bound_and_every_undone_step_lowers_the_rate(losses, rise, rate):
    rule, standing, counted, undone = Undo(rise=rise, rate=rate), SafeguardState(lowest=1.0), [1.0], 0
    for loss in losses:
        counts, after = rule.judge(loss, standing)
        assert counts == (loss <= (1 + rise) * min(counted))
        if counts:
            counted.append(loss)
            assert after.rate == standing.rate
        else:
            undone += 1
            assert after.lowest == standing.lowest
        standing = after
    assert standing.lowest == min(counted)
    assert standing.rate == pytest.approx(rate**undone)


def test_the_start_counts_and_sets_the_bound():
    assert Undo().judge(0.7, SafeguardState()) == (True, SafeguardState(0.7, 1.0))
    assert not Undo().judge(math.nan, SafeguardState())[0]


@pytest.mark.parametrize("name", SAFEGUARDS.names)
def test_every_rule_says_what_it_does_in_a_sentence_and_takes_back_its_own_verdicts_never(name):
    rule = SAFEGUARDS.build(name)
    assert type(rule).__doc__.strip().endswith(".")
    assert rule.judge(0.5, SafeguardState(lowest=0.5))[0], "a step that changes nothing counts"

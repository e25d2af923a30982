"""The step that meets a budget, on states small and large."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.communication import step_search
from fedpeft.communication.step_search import REACH, StepSearch


def entries(slices: int, size: int, dtype=np.float32):
    random = np.random.default_rng(0)
    scales = np.exp(random.normal(size=slices))
    return (random.normal(size=(slices, size)) * scales[:, None]).astype(dtype).reshape(-1), np.full(slices, size)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("step", [0.001, 0.1, 0.9, 3.0, 50.0])
def test_what_is_counted_is_what_is_sent(dtype, step):
    """The search counts levels in fewer passes than making them takes; they are the same levels."""
    y, sizes = entries(6, 100, dtype)
    y[:3], y[150] = 0, REACH * 5
    search = StepSearch(y, sizes, dither=False, dead=0.08)
    (q, classes), (counted, of) = search.levels(step, None), search._counted(step)
    assert (counted == q).all()
    assert (of == classes).all()


@pytest.mark.parametrize("dither", [False, True])
@pytest.mark.parametrize("bits", [2.0, 1.0, 0.4])
def test_a_large_state_meets_its_budget_as_a_small_one_does(monkeypatch, dither, bits):
    y, sizes = entries(40, 1000)
    budget = bits * len(y) / 8
    whole = StepSearch(y, sizes, dither, 0.08)
    small = whole.meet(budget)
    monkeypatch.setattr(step_search, "LARGE", 10_000)
    monkeypatch.setattr(step_search, "SAMPLE", 4_000)
    calls, cost = [], StepSearch.cost
    monkeypatch.setattr(StepSearch, "cost", lambda self, step: calls.append(len(self.y)) or cost(self, step))
    large = StepSearch(y, sizes, dither, 0.08).meet(budget)
    assert 0.97 * budget <= whole.cost(large) <= budget
    assert large == pytest.approx(small, rel=0.05)
    assert calls.count(len(y)) - 1 <= 7


@pytest.mark.parametrize("bits", [4.0, 1.0, 0.4, 0.05])
@pytest.mark.parametrize("sparse", [False, True])
def test_what_a_sample_spares_changes_no_step(monkeypatch, bits, sparse):
    """Where it is far from the limits the whole is not asked, and would have said the same."""
    monkeypatch.setattr(step_search, "LARGE", 10_000)
    monkeypatch.setattr(step_search, "SAMPLE", 4_000)
    y, sizes = entries(40, 1000)
    if sparse:
        y[np.random.default_rng(1).random(len(y)) < 0.98] = 0
    looked, made = [], []
    for surely in (step_search.SURELY, np.inf):
        monkeypatch.setattr(step_search, "SURELY", surely)
        search = StepSearch(y, sizes, False, 0.08)
        calls, cost = [], StepSearch.cost
        with monkeypatch.context() as counting:
            counting.setattr(StepSearch, "cost", lambda self, step: calls.append(len(self.y)) or cost(self, step))  # noqa: B023
            made.append(search.meet(bits * len(y) / 8))
        looked.append(calls.count(len(y)))
    assert made[0] == made[1]
    assert looked[0] <= looked[1]
    assert looked[0] < looked[1] or bits == 4.0 or sparse


def test_a_sample_has_its_share_of_every_slice(monkeypatch):
    monkeypatch.setattr(step_search, "SAMPLE", 100)
    y, sizes = np.arange(1000, dtype=np.float32), np.array([5, 0, 495, 333, 167])
    sample = StepSearch(y, sizes, False, 0.08)._sample
    assert sample.every == 10
    assert sample.sizes.sum() == len(sample.y) == 100
    ends = np.cumsum(sizes)
    owners = np.searchsorted(ends, sample.y, side="right")
    assert np.bincount(owners, minlength=5).tolist() == sample.sizes.tolist()


@pytest.mark.parametrize("dither", [False, True])
def test_a_state_of_which_the_sample_sees_nothing(monkeypatch, dither):
    """All that is not zero lies between the entries of the sample."""
    monkeypatch.setattr(step_search, "LARGE", 10_000)
    monkeypatch.setattr(step_search, "SAMPLE", 4_000)
    y = np.random.default_rng(0).normal(size=40_000).astype(np.float32)
    y[::10] = 0
    search = StepSearch(y, np.array([20_000, 20_000]), dither, 0.08)
    assert 0.9 * 5_000 <= search.cost(search.meet(5_000)) <= 5_000

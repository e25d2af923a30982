"""The step that meets a budget, on states small and large."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.communication import rate_curve, step_search
from fedpeft.communication.entropy import compute_entropy, encode_symbols
from fedpeft.communication.levels import split_levels
from fedpeft.communication.step_search import REACH, StepSearch


def entries(slices: int, size: int, dtype=np.float32):
    random = np.random.default_rng(0)
    scales = np.exp(random.normal(size=slices))
    return (random.normal(size=(slices, size)) * scales[:, None]).astype(dtype).reshape(-1), np.full(slices, size)


@pytest.mark.parametrize("dither", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("step", [0.001, 0.1, 0.9, 3.0, 50.0])
def test_what_is_counted_is_what_is_sent(monkeypatch, dtype, step, dither):
    """Block by block, in few passes; the definitions say the same of each entry."""
    monkeypatch.setattr(step_search, "BLOCK", 250)
    y, sizes = entries(7, 100, dtype)
    sizes = np.array([100, 0, 300, 1, 99, 200])
    y[:3], y[150], y[350:450] = 0, REACH * 5, 0
    search = StepSearch(y, sizes, dither, dead=0.08)
    assert len(search.blocks) > 2
    q, classes = search.compute_levels(step, search.probe)
    if dither:
        expected = np.floor(y / dtype(step) + search.probe + dtype(0.5))
    else:
        expected = np.copysign(np.floor(np.abs(y) / dtype(step) + dtype(0.5 - 0.08)), y)
    assert (q == np.clip(expected, -REACH, REACH)).all()
    counts = search.count_levels(step)
    reach = counts.shape[1] // 2
    if dither:
        assert (search.probe.min(), search.probe.max()) == pytest.approx((-0.5, 0.5), abs=0.01)
    else:
        assert reach == np.abs(q).max()
    of = np.repeat(classes, sizes)
    for c, level in {(0, 0), *zip(of.tolist(), q.tolist(), strict=True)}:
        assert counts[c, reach + level] == np.count_nonzero((of == c) & (q == level))
    assert counts.sum() == len(y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("step", [0.1, 0.9, 3.0, 50.0])
def test_moments_are_sums_over_the_entries_of_a_level(monkeypatch, dtype, step):
    monkeypatch.setattr(step_search, "BLOCK", 250)
    y, sizes = entries(7, 100, dtype)
    sizes = np.array([100, 0, 300, 1, 99, 200])
    ratios = np.array([1.0, 2.0, 0.5, 4.0, 1.0, 0.25])
    search = StepSearch(y, sizes, False, dead=0.08)
    level = np.abs(search.compute_levels(step, None)[0])
    m, squares = np.abs(y.astype(np.float64)) / step, np.repeat(np.square(ratios), sizes)
    plain, squared = search.compute_moments(step, ratios)
    size = search.count_by_size(step)
    for k in range(len(size)):
        assert size[k] == np.count_nonzero(level == k)
        assert plain[k] == pytest.approx(m[level == k].sum(), rel=1e-5)
        assert squared[k] == pytest.approx((m * squares)[level == k].sum(), rel=1e-5)
    alike = search.compute_moments(step, np.ones(6))
    assert alike[0].tolist() == alike[1].tolist() == plain.tolist()


@pytest.mark.parametrize(("size", "step"), [(40_000, 0.05), (4_000, 0.3), (2_000, 0.4)])
def test_the_cost_is_hardly_more_than_the_bytes_that_are_sent(size, step):
    y, sizes = entries(1, size)
    search = StepSearch(y, sizes, False, 0.08)
    _, streams = split_levels(*search.compute_levels(step * float(search.rms[0]), None), sizes)
    sent = len(encode_symbols(streams))
    assert sent <= search.estimate_cost(step * float(search.rms[0])) <= 1.01 * sent


@pytest.mark.parametrize("step", [0.1, 0.5, 0.9, 3.0, 6.0, 8.0, 12.0, 18.0, 20.0])
def test_what_arrives_is_told_by_counts_or_looked_at(step):
    y, sizes = entries(40, 1000)
    search = StepSearch(y, sizes, False, 0.08)
    level = np.abs(search.compute_levels(step, None)[0])
    energy = np.square(y.astype(np.float64))
    truth = energy[level > 0].sum() / energy.sum()
    told = search._estimate_arriving_energy(step)
    assert (told >= step_search.LEAST) == (truth >= step_search.LEAST)
    assert told <= truth * (1 + 1e-5)
    assert told == pytest.approx(truth, rel=1e-5) or told > step_search.LEAST


@pytest.mark.parametrize("dither", [False, True])
@pytest.mark.parametrize("bits", [2.0, 1.0, 0.4])
def test_a_large_state_meets_its_budget_as_a_small_one_does(monkeypatch, dither, bits):
    y, sizes = entries(40, 1000)
    budget = bits * len(y) / 8
    monkeypatch.setattr(step_search, "LARGE", 50_000)
    whole = StepSearch(y, sizes, dither, 0.08)
    small = whole.meet(budget)
    monkeypatch.setattr(step_search, "LARGE", 10_000)
    calls, cost = [], StepSearch.estimate_cost
    monkeypatch.setattr(StepSearch, "estimate_cost", lambda self, step: calls.append(step) or cost(self, step))
    large = StepSearch(y, sizes, dither, 0.08).meet(budget)
    assert 0.97 * budget <= whole.estimate_cost(large) <= budget
    assert large == pytest.approx(small, rel=0.05)
    assert len(calls) <= 4


@pytest.mark.parametrize("bits", [4.0, 1.0, 0.4, 0.05])
@pytest.mark.parametrize("sparse", [False, True])
def test_what_a_sample_spares_changes_no_step(monkeypatch, bits, sparse):
    """Where it is far from the finest step that is not tried, and would have said the same."""
    y, sizes = entries(40, 1000)
    if sparse:
        y[np.random.default_rng(1).random(len(y)) < 0.98] = 0
    looked, made = [], []
    for surely in (step_search.SURELY, np.inf):
        monkeypatch.setattr(step_search, "SURELY", surely)
        search = StepSearch(y, sizes, False, 0.08)
        calls, cost = [], StepSearch.estimate_cost
        with monkeypatch.context() as counting:
            counting.setattr(StepSearch, "estimate_cost", lambda self, step: calls.append(step) or cost(self, step))  # noqa: B023
            made.append(search.meet(bits * len(y) / 8))
        looked.append(len(calls))
    assert made[0] == made[1]
    assert looked[0] <= looked[1]
    assert looked[0] < looked[1] or bits == 4.0 or sparse


@pytest.mark.parametrize("dither", [False, True])
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "other scales", "one slice"])
def test_the_curve_says_about_what_levels_take(kind, dither):
    draws = np.random.default_rng(1)
    y = draws.normal(size=(40, 1000)) if kind != "heavy tails" else draws.standard_t(3, (40, 1000))
    y = (y * np.exp((kind == "other scales") * draws.normal(size=(40, 1)))).astype(np.float32).reshape(-1)
    search = StepSearch(y, np.full(40, 1000) if kind != "one slice" else np.array([40_000]), dither, 0.08)
    for step in (0.2, 0.7, 1.5, 3.0):
        spent = sum(compute_entropy(counts) for counts in search.count_levels(step)) / 8
        assert search._curve.estimate_size(step) == pytest.approx(spent, rel=0.08, abs=20)
        found, an_octave = search._curve.step(search._curve.estimate_size(step))
        assert found == pytest.approx(step, rel=1e-6)
        assert an_octave > 0


@pytest.mark.parametrize("dither", [False, True])
def test_a_state_of_which_the_sample_sees_nothing(dither):
    """All that is not zero lies between the entries of the sample."""
    y = np.random.default_rng(0).normal(size=40_000).astype(np.float32)
    y[:: 40_000 // rate_curve.SAMPLE] = 0
    search = StepSearch(y, np.array([20_000, 20_000]), dither, 0.08)
    assert 0.9 * 5_000 <= search.estimate_cost(search.meet(5_000)) <= 5_000

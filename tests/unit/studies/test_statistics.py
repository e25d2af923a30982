"""Intervals, paired comparisons and the Pareto front, against scipy and by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchmetrics.classification import MulticlassCalibrationError

from fedpeft.models.calibration import BINS, calibrate
from fedpeft.study.statistics import (
    TestCounts,
    compare,
    compute_half_width,
    compute_mean_and_deviation,
    compute_residual_variance,
    compute_uncertainty,
    find_pareto_front,
)
from tests.studies.made import made_result

SEEDS, ROWS = 6, 500


def made(rate: float, salt: int, seeds: int = SEEDS, rows: int = ROWS) -> dict[int, TestCounts]:
    generator = np.random.default_rng(salt)
    return {s: TestCounts((generator.random(rows) < rate).astype(float), np.ones(rows)) for s in range(seeds)}


def test_interval_is_scipys_paired_t_test() -> None:
    method, baseline = made(0.7, 1), made(0.6, 2)
    found = compare(method, baseline)
    assert found is not None
    mine = [100 * method[s].correct.mean() for s in range(SEEDS)]
    theirs = [100 * baseline[s].correct.mean() for s in range(SEEDS)]
    expected = stats.ttest_rel(mine, theirs).confidence_interval(0.95)
    assert found.difference == pytest.approx(np.mean(mine) - np.mean(theirs))
    assert found.difference - found.seed_half_width == pytest.approx(expected.low)
    assert found.difference + found.seed_half_width == pytest.approx(expected.high)
    one_sided = stats.ttest_rel(mine, theirs, alternative="greater").confidence_interval(0.95)
    assert found.lower_bound <= one_sided.low + 1e-9
    by_row = np.mean([method[s].correct - baseline[s].correct for s in range(SEEDS)], axis=0)
    rows = stats.ttest_1samp(100 * by_row, 0).confidence_interval(0.95)
    assert found.row_half_width == pytest.approx((rows.high - rows.low) / 2)
    assert (found.verdict, found.judge_no_worse(1.0)) == ("better", "yes")


def test_swapping_the_sides_turns_the_signs() -> None:
    method, baseline = made(0.7, 1), made(0.6, 2)
    one, other = compare(method, baseline), compare(baseline, method)
    assert one is not None
    assert other is not None
    assert one.difference == pytest.approx(-other.difference)
    assert one.lower_bound == pytest.approx(-other.upper_bound)
    assert (one.gained, one.lost) == (other.lost, other.gained)
    assert other.verdict == "worse"
    assert other.judge_no_worse(1.0) == "no"


def test_few_seeds_never_claim() -> None:
    found = compare(made(0.9, 1, seeds=4), made(0.1, 2, seeds=4))
    assert found is not None
    assert found.verdict == "not resolved (4 of 5 seeds)"
    assert found.judge_no_worse(50.0) == "not resolved"
    single = compare(made(0.9, 1, seeds=1), made(0.1, 2, seeds=1))
    assert single is not None
    assert math.isinf(single.seed_half_width)


def test_seeds_agree_but_few_rows_do_not_decide() -> None:
    """One row of 40 is gained under every seed: certain between seeds, but another draw of rows could reverse it."""
    baseline = {s: TestCounts(np.zeros(40), np.ones(40)) for s in range(5)}
    method = {s: TestCounts(np.eye(40)[0], np.ones(40)) for s in range(5)}
    found = compare(method, baseline)
    assert found is not None
    assert found.seed_half_width == 0
    assert found.verdict == "not resolved (other test rows could reverse it)"


def test_equal_predictions_are_identical() -> None:
    found = compare(made(0.5, 3), made(0.5, 3))
    assert found is not None
    assert (found.verdict, found.judge_no_worse(0.1), found.difference) == ("identical", "yes", 0.0)


def test_only_shared_seeds_and_rows_are_paired() -> None:
    assert compare(made(0.5, 1), {9: made(0.5, 2)[0]}) is None
    assert compare(made(0.5, 1), made(0.5, 2, rows=ROWS - 1)) is None
    found = compare(made(0.5, 1, seeds=7), made(0.5, 2, seeds=5))
    assert found is not None
    assert found.seeds == (0, 1, 2, 3, 4)


def test_rows_with_several_predictions_count_by_them() -> None:
    count = np.array([1.0, 9.0])
    method = {s: TestCounts(np.array([1.0, 3.0]), count) for s in range(5)}
    baseline = {s: TestCounts(np.array([0.0, 5.0]), count) for s in range(5)}
    found = compare(method, baseline)
    assert found is not None
    assert found.difference == pytest.approx(100 * (4 - 5) / 10)


@pytest.mark.slow
def test_other_rows_change_a_ratio_of_sums_less_than_a_sum() -> None:
    """Rows that all gain one prediction in ten leave nothing to doubt, however long they are."""
    counts = np.array([10.0, 40.0, 20.0, 90.0])
    method = {s: TestCounts(0.6 * counts, counts) for s in range(SEEDS)}
    found = compare(method, {s: TestCounts(0.5 * counts, counts) for s in range(SEEDS)})
    assert found.difference == pytest.approx(10.0)
    assert found.row_half_width == pytest.approx(0.0, abs=1e-9)


def test_rows_of_unequal_length_have_the_interval_of_a_ratio() -> None:
    """The spread of the difference over many draws of test rows, against the half width that one draw claims."""
    random = np.random.default_rng(0)
    differences, widths = [], []
    for _ in range(400):
        counts = random.integers(1, 60, 200).astype(float)
        gains = np.round(counts * random.normal(0.1, 0.02, 200))
        found = compare({0: TestCounts(gains, counts)}, {0: TestCounts(0 * gains, counts)})
        differences.append(found.difference)
        widths.append(found.row_half_width)
    assert np.mean(widths) == pytest.approx(1.96 * np.std(differences), rel=0.12)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = [abs(x.mean()) <= compute_half_width(x, 0.95, 2) for x in generator.standard_normal((2000, 5))]
    assert 0.93 < np.mean(hits) < 0.97


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8))
def test_mean_and_deviation_are_numpys(values: list[float]) -> None:
    mean, deviation = compute_mean_and_deviation(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-6)
    assert deviation == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert compute_mean_and_deviation(values[:1])[1] is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=10))
def test_front_dominates_the_rest_and_nothing_on_it(points: list[tuple[int, int]]) -> None:
    on = find_pareto_front([c for c, _ in points], [v for _, v in points])
    front = [p for p, is_on in zip(points, on, strict=True) if is_on]
    assert front
    for cost, value in points:
        better = [(c, v) for c, v in front if c <= cost and v >= value and (c, v) != (cost, value)]
        assert ((cost, value) in front) != bool(better)


def test_calibration_error_is_torchmetrics_multiclass_one() -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    probabilities = torch.softmax(2 * torch.randn(300, 4, generator=generator, dtype=torch.float64), -1)
    labels = torch.randint(0, 4, (300,), generator=generator)
    confidence, predicted = probabilities.max(-1)
    found = calibrate(confidence.numpy(), (predicted == labels).double().numpy())
    expected = MulticlassCalibrationError(num_classes=4, n_bins=BINS, norm="l1")(probabilities, labels)
    assert found.error == pytest.approx(float(expected), abs=1e-6)
    gaps = [n * abs(a - c) for n, a, c in zip(found.rows, found.accuracy, found.confidence, strict=True)]
    assert sum(gaps) / sum(found.rows) == pytest.approx(found.error, abs=1e-6)
    assert sum(found.rows) == 300


def test_sure_and_right_is_calibrated() -> None:
    assert calibrate(np.ones(10), np.ones(10)).error == pytest.approx(0, abs=1e-6)
    assert calibrate(np.ones(10), np.zeros(10)).error == pytest.approx(1, abs=1e-6)


def test_runs_on_the_rows_of_two_data_sets_are_no_pairs_though_they_are_as_many():
    result = made_result({"method": "a"}, 0, 0.9, 1.0)
    names = (
        "digits",
        "digits(seed=1)",
        "reviews",
        "reviews(margin=1.0)",
        "no longer there(rows=5)",
        "tasks(a)",
        "tasks(b)",
        "tasks(a, late=2)",
        "scenes(task='towers(connector=none)')",
        "scenes(rows=600)",
    )
    of = {name: {0: replace(result, config=result.config | {"dataset": name}).test_counts} for name in names}
    same = {(one, other) for one in names for other in names if compare(of[one], of[other]) is not None}
    alike = {("tasks(a)", "tasks(a, late=2)"), names[-2:]}
    assert same == {(name, name) for name in names} | alike | {(other, one) for one, other in alike}


def false_signs(of_seeds: float, of_rows: float, of_rest: float, seeds: int = 5) -> tuple[float, float]:
    """Return how often a sign is claimed although the mean difference is 0, over redrawn seeds and examples.

    The first number uses the interval over both, the second the wider of one over seeds and one over examples.
    """
    random, rows, draws = np.random.default_rng(0), 100, 3000
    over, wider = 0, 0
    for _ in range(draws):
        each = (of_seeds * seeds) ** 0.5 * random.standard_normal((seeds, 1))
        each = each + (of_rows * rows) ** 0.5 * random.standard_normal((1, rows))
        each = each + (of_rest * seeds * rows) ** 0.5 * random.standard_normal((seeds, rows))
        far, by_seed, by_row = abs(float(each.mean())), each.mean(1), each.mean(0)
        over += far > compute_uncertainty(by_seed, by_row, compute_residual_variance(each)).compute_half_width(0.95, 2)
        wider += far > max(compute_half_width(by_seed, 0.95, 2), compute_half_width(by_row, 0.95, 2))
    return over / draws, wider / draws


@pytest.mark.medium
@pytest.mark.parametrize(
    ("of_seeds", "of_rows", "of_rest"), [(1, 0, 0), (0, 1, 0), (1, 1, 0), (0.3, 1, 0), (0.3, 0.3, 1), (0, 0, 1)]
)
def test_a_sign_that_is_not_there_is_seldom_claimed(of_seeds: float, of_rows: float, of_rest: float) -> None:
    assert false_signs(of_seeds, of_rows, of_rest)[0] < 0.062


@pytest.mark.medium
@pytest.mark.parametrize(("of_seeds", "seeds"), [(1, 5), (0.5, 5), (1, 20)])
def test_the_wider_of_two_intervals_claims_too_much(of_seeds: float, seeds: int) -> None:
    """Which is why it is not what decides."""
    over, wider = false_signs(of_seeds, 1, 0, seeds)
    assert over < 0.062 < 0.07 < wider


def test_no_interval_over_both_is_narrower_than_one_over_either() -> None:
    for salt in range(1, 20):
        found = compare(made(0.7, salt), made(0.7, salt + 20))
        assert found is not None
        assert found.half_width >= max(found.seed_half_width, found.row_half_width) - 1e-12


def test_without_rows_it_is_the_test_over_seeds() -> None:
    by_seed = np.array([1.0, 1.2, 0.9, 1.1, 0.8])
    found = compute_uncertainty(by_seed, np.zeros(0), 0.0)
    assert found.compute_probability(float(by_seed.mean())) == pytest.approx(stats.ttest_1samp(by_seed, 0.0).pvalue)
    assert found.compute_half_width(0.95, 2) == pytest.approx(compute_half_width(by_seed, 0.95, 2))
    assert compute_uncertainty(by_seed[:1], np.zeros(9), 0.0).compute_half_width(0.95, 2) == float("inf")

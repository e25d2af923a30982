"""Statistics over seeds: intervals, and comparisons paired by test example and seed.

Two runs of a pair share the seed (partition, cohorts, start) and the test examples. d_s is the difference of their test
accuracy under seed s. The interval of the mean difference is Student's, over the seeds:

    mean(d) ± t(0.975, S - 1) * sd(d) / sqrt(S)

It covers other seeds on these test examples. A second interval covers other test examples. It uses the differences per
example, averaged over the seeds. If examples hold several predictions, accuracy is a ratio of sums, and an example
counts with its effect on that ratio. The third interval covers other seeds on other examples, and decides the verdict.
Seeds and examples are crossed random effects, so the variance of the mean is

    sd_seeds(d)^2 / S + sd_rows(d)^2 / N - sd_rest(d)^2 / (S N)

with Satterthwaite's degrees of freedom. The last term is the residual after removing the effects of seeds and examples,
which both other terms contain. If one of the first two intervals is wider, it replaces the third. A difference counts
as resolved only if the third interval excludes zero, and only with at least `SEEDS_FOR_A_CLAIM` seeds. Intervals are
not corrected for the number of comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped, unused-ignore]

Array = NDArray[np.float64]

SEEDS_FOR_A_CLAIM = 5
"""Fewest seeds for a claim. With fewer, Student's t is too wide and too dependent on normality."""

LEVEL = 0.95

POINTS = 100.0
"""Percentage points per unit of accuracy."""


def compute_mean_and_deviation(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the mean and the sample standard deviation (n - 1).

    Without values, both are None; for a single value, the deviation is None.
    """
    if not values:
        return None, None
    data = np.asarray(values, dtype=np.float64)
    return float(data.mean()), float(data.std(ddof=1)) if len(data) > 1 else None


def compute_half_width(values: Array, level: float, sides: int) -> float:
    """Return the half width of Student's interval of a mean.

    Args:
        values: float64 (count,).
        level: confidence level, between 0 and 1.
        sides: 2 for an interval, 1 for the distance of a one-sided bound.

    Returns infinity for fewer than two values.
    """
    count = len(values)
    if count < 2:
        return math.inf
    return _compute_quantile(level, sides, count - 1) * float(values.std(ddof=1)) / math.sqrt(count)


@dataclass(frozen=True)
class Uncertainty:
    """The variance of a mean, estimated in several ways; the widest interval counts.

    Attributes:
        seen: variance and its degrees of freedom, for each estimate.

    Attributes:
        seen: variance, and the degrees of freedom with which it is known, of each way.
    """

    seen: tuple[tuple[float, float], ...]

    def compute_half_width(self, level: float, sides: int) -> float:
        """Return the widest half width, as the function of that name; infinite without estimates."""
        widths = [_compute_quantile(level, sides, freedom) * math.sqrt(variance) for variance, freedom in self.seen]
        return max(widths, default=math.inf)

    def compute_probability(self, beyond: float) -> float:
        """Return the largest two-sided p-value of a mean at distance `beyond` from the tested value."""
        probabilities = [_compute_two_sided_p(beyond, variance, freedom) for variance, freedom in self.seen]
        return max(probabilities, default=1.0)


def _compute_quantile(level: float, sides: int, freedom: float) -> float:
    return float(stats.t.ppf(1 - (1 - level) / sides, freedom))


def _compute_two_sided_p(beyond: float, variance: float, freedom: float) -> float:
    if variance == 0.0:
        return 0.0 if beyond else 1.0
    return 2 * float(stats.t.sf(abs(beyond) / math.sqrt(variance), freedom))


@dataclass(frozen=True)
class TestCounts:
    """A run on the test examples: correct predictions and predictions per example, float64 (examples,).

    Attributes:
        source: the origin of the examples. Runs with different sources share no examples.
    """

    correct: Array
    count: Array
    source: str = ""


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline, in percentage points of test accuracy, method minus baseline.

    Attributes:
        seeds: the shared seeds, in order.
        difference: mean over the seeds.
        seed_half_width: half width of the two-sided 95 % interval over seeds; infinite with one seed.
        row_half_width: the same over test examples.
        half_width: the same over both at once; at least as wide as either.
        lower_bound: one-sided 95 % bound, over both at once.
        upper_bound: its counterpart above.
        gained: test examples that are right under the method and wrong under the baseline, mean over seeds.
        lost: the reverse.
    """

    seeds: tuple[int, ...]
    difference: float
    seed_half_width: float
    row_half_width: float
    half_width: float
    lower_bound: float
    upper_bound: float
    gained: float
    lost: float

    @property
    def has_enough_seeds(self) -> bool:
        """Whether there are enough seeds for a claim."""
        return len(self.seeds) >= SEEDS_FOR_A_CLAIM

    @property
    def verdict(self) -> str:
        """One of better, worse, identical or not resolved, with a reason."""
        if not self.has_enough_seeds:
            return f"not resolved ({len(self.seeds)} of {SEEDS_FOR_A_CLAIM} seeds)"
        if self.gained == self.lost == 0 and self.difference == 0:
            return "identical"
        if abs(self.difference) > self.half_width:
            return "better" if self.difference > 0 else "worse"
        if abs(self.difference) > self.seed_half_width:
            return "not resolved (other test rows could reverse it)"
        return "not resolved"

    def judge_no_worse(self, margin: float) -> str:
        """Return yes, no or not resolved: is the method worse by no more than `margin` points?"""
        if not self.has_enough_seeds:
            return "not resolved"
        if self.lower_bound > -margin:
            return "yes"
        return "no" if self.upper_bound < -margin else "not resolved"


@dataclass(frozen=True)
class PairedDifferences:
    """Differences in points of test accuracy, method minus baseline, for the shared seeds.

    Attributes:
        seeds: in order.
        by_seed: float64 (seeds,), over all test examples.
        by_row: float64 (examples,), mean over the seeds; an example's effect on the accuracy, with the same mean.
        rest: residual variance after removing the effects of seeds and examples; 0 with one seed.
        gained, lost: test examples that are right under one and wrong under the other, mean over seeds.
    """

    seeds: tuple[int, ...]
    by_seed: Array
    by_row: Array
    rest: float
    gained: float
    lost: float


def pair_runs(method: Mapping[int, TestCounts], baseline: Mapping[int, TestCounts]) -> PairedDifferences | None:
    """Pair the runs of a method with those of the baseline by seed; None if they share no seed or test examples."""
    seeds = tuple(sorted(s for s in method.keys() & baseline.keys() if _has_same_rows(method[s], baseline[s])))
    if not seeds or len({len(method[s].count) for s in seeds}) > 1:
        return None
    total = method[seeds[0]].count.sum()
    changes = np.stack([method[s].correct - baseline[s].correct for s in seeds])
    by_seed = POINTS * changes.sum(1) / total
    counts = method[seeds[0]].count
    effects = by_seed[:, None] + (POINTS * changes - by_seed[:, None] * counts) * len(counts) / total
    gained = float(np.clip(changes, 0, None).sum(1).mean())
    lost = float(np.clip(-changes, 0, None).sum(1).mean())
    return PairedDifferences(seeds, by_seed, effects.mean(0), compute_residual_variance(effects), gained, lost)


def compute_residual_variance(each: Array) -> float:
    """Return the variance of differences (seeds, examples) after removing the means of both."""
    seeds, rows = each.shape
    if min(seeds, rows) < 2:
        return 0.0
    left = each - each.mean(0) - each.mean(1)[:, None] + each.mean()
    return float(np.square(left).sum() / ((seeds - 1) * (rows - 1)))


def compute_uncertainty(by_seed: Array, by_row: Array, rest: float) -> Uncertainty:
    """Estimate the uncertainty of a mean difference, for other seeds on other examples.

    Args:
        by_seed: differences by seed (seeds,).
        by_row: differences by example (examples,); empty to cover other seeds on the same examples.
        rest: residual variance, as in `PairedDifferences`.
    """
    seeds, rows = len(by_seed), len(by_row)
    if seeds < 2 or rows == 1:
        return Uncertainty(())
    of_seeds = float(by_seed.var(ddof=1)) / seeds
    if not rows:
        return Uncertainty(((of_seeds, seeds - 1),))
    of_rows, twice = float(by_row.var(ddof=1)) / rows, rest / (seeds * rows)
    variance = max(of_seeds, of_rows, of_seeds + of_rows - twice)
    known = of_seeds**2 / (seeds - 1) + of_rows**2 / (rows - 1) + twice**2 / ((seeds - 1) * (rows - 1))
    freedom = max(seeds - 1, variance**2 / known) if known else seeds - 1
    return Uncertainty(((of_seeds, seeds - 1), (of_rows, rows - 1), (variance, freedom)))


def compare(method: Mapping[int, TestCounts], baseline: Mapping[int, TestCounts]) -> Comparison | None:
    """Compare a method's runs with the baseline's by seed; None if they share no seed or test examples."""
    pairs = pair_runs(method, baseline)
    if pairs is None:
        return None
    difference = float(pairs.by_seed.mean())
    both = compute_uncertainty(pairs.by_seed, pairs.by_row, pairs.rest)
    one_sided = both.compute_half_width(LEVEL, 1)
    return Comparison(
        seeds=pairs.seeds,
        difference=difference,
        seed_half_width=compute_half_width(pairs.by_seed, LEVEL, 2),
        row_half_width=compute_half_width(pairs.by_row, LEVEL, 2),
        half_width=both.compute_half_width(LEVEL, 2),
        lower_bound=difference - one_sided,
        upper_bound=difference + one_sided,
        gained=pairs.gained,
        lost=pairs.lost,
    )


def _has_same_rows(one: TestCounts, other: TestCounts) -> bool:
    return one.source == other.source and np.array_equal(one.count, other.count)


def find_pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Return whether each (cost, value) is on the Pareto front.

    A pair is on the front if no other has at most its cost and at least its value, with one of them strictly better.
    """
    return [
        not any(c <= cost and v >= value and (c < cost or v > value) for c, v in zip(costs, values, strict=True))
        for cost, value in zip(costs, values, strict=True)
    ]

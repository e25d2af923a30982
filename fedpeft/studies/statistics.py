"""What several seeds allow one to say: intervals over seeds, and comparisons paired by test row and seed.

Two runs of a pair share the seed (partition, cohorts, start) and the test rows; d_s is the difference of their test
accuracy under seed s. The interval of the mean difference is Student's, over the seeds:

    mean(d) ± t(0.975, S - 1) * sd(d) / sqrt(S)

It says what other seeds would give on these test rows. What other test rows would give is a second interval, from the
per-row differences averaged over the seeds; where rows hold several predictions, accuracy is a ratio of sums, and a row
counts with what it changes of the ratio. What other seeds on other rows would give is the third, which is what counts:
seeds and rows are crossed random effects, so that the variance of the mean is

    sd_seeds(d)^2 / S + sd_rows(d)^2 / N - sd_rest(d)^2 / (S N)

(what is left when seeds and rows are taken out is in both of the others) with Satterthwaite's degrees of freedom; where
one of the first two intervals is wider, it stands in its place. A difference counts as resolved only if that leaves
zero out, and only with at least `SEEDS_FOR_A_CLAIM` seeds. Intervals are not corrected for the number of comparisons.
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
"""With fewer, Student's t is so wide, and so dependent on normality, that nothing is claimed."""

LEVEL = 0.95

POINTS = 100.0
"""Percentage points per unit of accuracy."""


def compute_mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); None for a single value."""
    data = np.asarray(values, dtype=np.float64)
    return float(data.mean()), float(data.std(ddof=1)) if len(data) > 1 else None


def compute_half_width(values: Array, level: float, sides: int) -> float:
    """Student's half width of the interval (`sides` 2) or the distance of the bound (`sides` 1) of a mean."""
    count = len(values)
    if count < 2:
        return math.inf
    return _compute_quantile(level, sides, count - 1) * float(values.std(ddof=1)) / math.sqrt(count)


@dataclass(frozen=True)
class Uncertainty:
    """Of a mean, seen in several ways; the one counts that allows least to be said.

    Attributes:
        seen: variance, and the degrees of freedom with which it is known, of each way.
    """

    seen: tuple[tuple[float, float], ...]

    def compute_half_width(self, level: float, sides: int) -> float:
        """As the function of that name, of the widest; infinite where nothing is known."""
        widths = [_compute_quantile(level, sides, freedom) * math.sqrt(variance) for variance, freedom in self.seen]
        return max(widths, default=math.inf)

    def compute_probability(self, beyond: float) -> float:
        """The largest two-sided p-value of a mean that lies so far from what is tested."""
        found = [_compute_two_sided_p(beyond, variance, freedom) for variance, freedom in self.seen]
        return max(found, default=1.0)


def _compute_quantile(level: float, sides: int, freedom: float) -> float:
    return float(stats.t.ppf(1 - (1 - level) / sides, freedom))


def _compute_two_sided_p(beyond: float, variance: float, freedom: float) -> float:
    if variance == 0.0:
        return 0.0 if beyond else 1.0
    return 2 * float(stats.t.sf(abs(beyond) / math.sqrt(variance), freedom))


@dataclass(frozen=True)
class TestCounts:
    """A run on the test rows: correct predictions and predictions of each row, float64 (rows,).

    Attributes:
        source: where the rows are from; runs of other sources share none, be they as many.
    """

    correct: Array
    count: Array
    source: str = ""


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline; all differences in percentage points of test accuracy, method minus baseline.

    Attributes:
        seeds: the seeds that both have, in order.
        difference: mean over the seeds.
        seed_half_width: half width of the two-sided 95 % interval over seeds; infinite with one seed.
        row_half_width: the same over test rows.
        half_width: the same over both at once; at least as wide as either.
        lower_bound: one-sided 95 % bound, over both at once.
        upper_bound: its counterpart above.
        gained: test rows right under the method and wrong under the baseline, mean over seeds.
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
        """Whether a claim is allowed at all."""
        return len(self.seeds) >= SEEDS_FOR_A_CLAIM

    @property
    def verdict(self) -> str:
        """better, worse, identical or not resolved."""
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
        """Whether the method is worse by no more than `margin` points: yes, no or not resolved."""
        if not self.has_enough_seeds:
            return "not resolved"
        if self.lower_bound > -margin:
            return "yes"
        return "no" if self.upper_bound < -margin else "not resolved"


@dataclass(frozen=True)
class PairedDifferences:
    """Differences in points of test accuracy, method minus baseline, of the seeds that both have.

    Attributes:
        seeds: in order.
        by_seed: float64 (seeds,), over all test rows.
        by_row: float64 (rows,), mean over the seeds; what a row changes of the accuracy, with the same mean.
        rest: variance of what is left of single differences once seeds and rows are taken out; 0 with one seed.
        gained, lost: test rows right under one and wrong under the other, mean over seeds.
    """

    seeds: tuple[int, ...]
    by_seed: Array
    by_row: Array
    rest: float
    gained: float
    lost: float


def pair_runs(method: Mapping[int, TestCounts], baseline: Mapping[int, TestCounts]) -> PairedDifferences | None:
    """The runs of a method beside those of the baseline, by seed; None where they share no seed or test rows."""
    seeds = tuple(sorted(s for s in method.keys() & baseline.keys() if _has_same_rows(method[s], baseline[s])))
    if not seeds or len({len(method[s].count) for s in seeds}) > 1:
        return None
    total = method[seeds[0]].count.sum()
    changes_SN = np.stack([method[s].correct - baseline[s].correct for s in seeds])
    by_seed = POINTS * changes_SN.sum(1) / total
    counts_N = method[seeds[0]].count
    each_SN = by_seed[:, None] + (POINTS * changes_SN - by_seed[:, None] * counts_N) * len(counts_N) / total
    gained = float(np.clip(changes_SN, 0, None).sum(1).mean())
    lost = float(np.clip(-changes_SN, 0, None).sum(1).mean())
    return PairedDifferences(seeds, by_seed, each_SN.mean(0), compute_residual_variance(each_SN), gained, lost)


def compute_residual_variance(each: Array) -> float:
    """The variance of differences (seeds, rows) once the means of both are taken out."""
    seeds, rows = each.shape
    if min(seeds, rows) < 2:
        return 0.0
    left = each - each.mean(0) - each.mean(1)[:, None] + each.mean()
    return float(np.square(left).sum() / ((seeds - 1) * (rows - 1)))


def compute_uncertainty(by_seed: Array, by_row: Array, rest: float) -> Uncertainty:
    """Of the mean of differences by seed (seeds,) and by row (rows,), for other seeds on other rows.

    Args:
        by_row: empty: for other seeds on these rows.
        rest: as `PairedDifferences` has it.
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
    """Compare the runs of a method with those of the baseline, by seed; None where they share no seed or test rows."""
    found = pair_runs(method, baseline)
    if found is None:
        return None
    difference = float(found.by_seed.mean())
    both = compute_uncertainty(found.by_seed, found.by_row, found.rest)
    one_sided = both.compute_half_width(LEVEL, 1)
    return Comparison(
        seeds=found.seeds,
        difference=difference,
        seed_half_width=compute_half_width(found.by_seed, LEVEL, 2),
        row_half_width=compute_half_width(found.by_row, LEVEL, 2),
        half_width=both.compute_half_width(LEVEL, 2),
        lower_bound=difference - one_sided,
        upper_bound=difference + one_sided,
        gained=found.gained,
        lost=found.lost,
    )


def _has_same_rows(one: TestCounts, other: TestCounts) -> bool:
    return one.source == other.source and np.array_equal(one.count, other.count)


def find_pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """For each (cost, value): whether no other has a lower or equal cost and a higher or equal value, one strictly."""
    return [
        not any(c <= cost and v >= value and (c < cost or v > value) for c, v in zip(costs, values, strict=True))
        for cost, value in zip(costs, values, strict=True)
    ]

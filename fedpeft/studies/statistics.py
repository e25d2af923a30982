"""What several seeds allow one to say: intervals over seeds, and comparisons paired by test row and seed.

Two runs of a pair share the seed (partition, cohorts, start) and the test rows; d_s is the difference of their test
accuracy under seed s. The interval of the mean difference is Student's, over the seeds:

    mean(d) ± t(0.975, S - 1) * sd(d) / sqrt(S)

It says what other seeds would give on these test rows. What other test rows would give is a second interval, from the
per-row differences averaged over the seeds; where rows hold several predictions, accuracy is a ratio of sums, and a row
counts with what it changes of the ratio. A difference counts as resolved only if both intervals agree on its sign,
and only with at least `SEEDS_FOR_A_CLAIM` seeds. Intervals are not corrected for the number of comparisons.
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


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); None for a single value."""
    data = np.asarray(values, dtype=np.float64)
    return float(data.mean()), float(data.std(ddof=1)) if len(data) > 1 else None


def half_width(values: Array, level: float, sides: int) -> float:
    """Student's half width of the interval (`sides` 2) or the distance of the bound (`sides` 1) of a mean."""
    count = len(values)
    if count < 2:
        return math.inf
    quantile = float(stats.t.ppf(1 - (1 - level) / sides, count - 1))
    return quantile * float(values.std(ddof=1)) / math.sqrt(count)


@dataclass(frozen=True)
class Scored:
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
        lower_bound: one-sided 95 % bound: the smaller of the one over seeds and the one over test rows.
        upper_bound: its counterpart above.
        gained: test rows right under the method and wrong under the baseline, mean over seeds.
        lost: the reverse.
    """

    seeds: tuple[int, ...]
    difference: float
    seed_half_width: float
    row_half_width: float
    lower_bound: float
    upper_bound: float
    gained: float
    lost: float

    @property
    def enough_seeds(self) -> bool:
        """Whether a claim is allowed at all."""
        return len(self.seeds) >= SEEDS_FOR_A_CLAIM

    @property
    def verdict(self) -> str:
        """better, worse, identical or not resolved."""
        if not self.enough_seeds:
            return f"not resolved ({len(self.seeds)} of {SEEDS_FOR_A_CLAIM} seeds)"
        if self.gained == self.lost == 0 and self.difference == 0:
            return "identical"
        if abs(self.difference) > self.seed_half_width:
            if abs(self.difference) > self.row_half_width:
                return "better" if self.difference > 0 else "worse"
            return "not resolved (other test rows could reverse it)"
        return "not resolved"

    def no_worse(self, margin: float) -> str:
        """Whether the method is worse by no more than `margin` points: yes, no or not resolved."""
        if not self.enough_seeds:
            return "not resolved"
        if self.lower_bound > -margin:
            return "yes"
        return "no" if self.upper_bound < -margin else "not resolved"


@dataclass(frozen=True)
class Paired:
    """Differences in points of test accuracy, method minus baseline, of the seeds that both have.

    Attributes:
        seeds: in order.
        by_seed: float64 (seeds,), over all test rows.
        by_row: float64 (rows,), mean over the seeds; what a row changes of the accuracy, with the same mean.
        gained, lost: test rows right under one and wrong under the other, mean over seeds.
    """

    seeds: tuple[int, ...]
    by_seed: Array
    by_row: Array
    gained: float
    lost: float


def pair(method: Mapping[int, Scored], baseline: Mapping[int, Scored]) -> Paired | None:
    """The runs of a method beside those of the baseline, by seed; None where they share no seed or test rows."""
    seeds = tuple(sorted(s for s in method.keys() & baseline.keys() if _same_rows(method[s], baseline[s])))
    if not seeds or len({len(method[s].count) for s in seeds}) > 1:
        return None
    total = method[seeds[0]].count.sum()
    changes_SN = np.stack([method[s].correct - baseline[s].correct for s in seeds])
    by_seed = POINTS * changes_SN.sum(1) / total
    difference = float(by_seed.mean())
    counts_N = method[seeds[0]].count
    by_row = difference + (POINTS * changes_SN.mean(0) - difference * counts_N) * len(counts_N) / total
    gained = float(np.clip(changes_SN, 0, None).sum(1).mean())
    return Paired(seeds, by_seed, by_row, gained, lost=float(np.clip(-changes_SN, 0, None).sum(1).mean()))


def compare(method: Mapping[int, Scored], baseline: Mapping[int, Scored]) -> Comparison | None:
    """Compare the runs of a method with those of the baseline, by seed; None where they share no seed or test rows."""
    found = pair(method, baseline)
    if found is None:
        return None
    difference = float(found.by_seed.mean())
    one_sided = max(half_width(found.by_seed, LEVEL, 1), half_width(found.by_row, LEVEL, 1))
    return Comparison(
        seeds=found.seeds,
        difference=difference,
        seed_half_width=half_width(found.by_seed, LEVEL, 2),
        row_half_width=half_width(found.by_row, LEVEL, 2),
        lower_bound=difference - one_sided,
        upper_bound=difference + one_sided,
        gained=found.gained,
        lost=found.lost,
    )


def _same_rows(one: Scored, other: Scored) -> bool:
    return one.source == other.source and np.array_equal(one.count, other.count)


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """For each (cost, value): whether no other has a lower or equal cost and a higher or equal value, one strictly."""
    return [
        not any(c <= cost and v >= value and (c < cost or v > value) for c, v in zip(costs, values, strict=True))
        for cost, value in zip(costs, values, strict=True)
    ]

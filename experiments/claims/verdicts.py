"""What a study's runs say of a claim: a paired difference, its interval, and a verdict corrected within a family.

A claim is about two methods of a study that share everything else. Its p-value is the larger of two paired t-tests,
over seeds and over test rows (`fedpeft.studies.statistics` says why both): of a difference of zero, two-sided, where a
method is said to be better; of a loss of `margin` points, one-sided, where it is said to be no worse. Within a family
of comparisons the p-values are Holm's: the smallest times the number of claims, the next times one less, never falling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats  # type: ignore[import-untyped, unused-ignore]

from fedpeft.studies.statistics import LEVEL, SEEDS_FOR_A_CLAIM, Array, half_width

MOST_SEEDS = 100
"""Where so many would not do, no number is said."""

NO_ROWS: Array = np.zeros(0)

HOLDS, FAILS, OPEN = "holds", "does not hold", "not resolved"


@dataclass(frozen=True)
class Evidence:
    """Differences in points, method minus baseline: one a seed, and where rows are known one a test row.

    Attributes:
        by_seed: float64 (seeds,).
        by_row: float64 (rows,), with the same mean; empty where only totals are known.
    """

    by_seed: Array
    by_row: Array

    @property
    def difference(self) -> float:
        """Their mean."""
        return float(self.by_seed.mean())

    @property
    def half_width(self) -> float:
        """Of the two-sided 95 % interval: the wider of those over seeds and over rows."""
        return max(half_width(values, LEVEL, 2) for values in self.tested)

    @property
    def tested(self) -> tuple[Array, ...]:
        """The samples that a test is over."""
        return (self.by_seed, self.by_row) if len(self.by_row) else (self.by_seed,)

    def probability(self, against: float, alternative: str) -> float:
        """The larger p-value of the t-tests of a mean of `against`; `alternative` as scipy has it."""
        found = []
        for values in self.tested:
            if len(values) < 2:
                return 1.0
            if float(values.std(ddof=1)) == 0.0:
                beyond = float(values.mean()) - against
                true = {"greater": beyond > 0, "less": beyond < 0, "two-sided": beyond != 0}[alternative]
                found.append(0.0 if true else 1.0)
            else:
                found.append(float(stats.ttest_1samp(values, against, alternative=alternative).pvalue))
        return max(found)


@dataclass(frozen=True)
class Verdict:
    """What is said of a claim, with the p-value after Holm's correction."""

    word: str
    probability: float
    needed: int | None = None
    """Seeds with which a difference as large, and as scattered, would be resolved; None where none is known."""
    of_rows: bool = False
    """Whether no number of seeds would do, since the test rows are too few."""


def holm(probabilities: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm, 1979), in the order given."""
    order = sorted(range(len(probabilities)), key=lambda i: probabilities[i])
    corrected, highest = [0.0] * len(order), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * probabilities[index]))
        corrected[index] = highest
    return corrected


def open_factor(corrected: Sequence[float]) -> int:
    """What Holm's correction multiplies the p-value of that claim by which is the next to be rejected: the number of
    those that are not."""
    return sum(p >= 1 - LEVEL for p in corrected)


def probability(evidence: Evidence, margin: float | None) -> float:
    """Before any correction: of no difference, or of a loss of `margin`, on the side that is more certain."""
    if margin is None:
        return evidence.probability(0.0, "two-sided")
    return min(evidence.probability(-margin, side) for side in ("greater", "less"))


def verdict(evidence: Evidence, margin: float | None, corrected: float, factor: int = 1) -> Verdict:
    """Holds, does not hold, or not resolved.

    Args:
        margin: None: the method is said to be better than its baseline.
        corrected: the p-value after Holm's correction.
        factor: of that correction, for a claim that is to be resolved next (`open_factor`).
    """
    sought = evidence.difference + (margin or 0.0)
    if len(evidence.by_seed) >= SEEDS_FOR_A_CLAIM and corrected < 1 - LEVEL:
        return Verdict(HOLDS if sought > 0 else FAILS, corrected)
    if len(evidence.by_row) and factor * probability(Evidence(evidence.by_row, NO_ROWS), margin) >= 1 - LEVEL:
        return Verdict(OPEN, corrected, of_rows=True)
    return Verdict(OPEN, corrected, seeds_needed(evidence.by_seed, sought, 2 if margin is None else 1, factor))


def seeds_needed(by_seed: Array, sought: float, sides: int, factor: int) -> int | None:
    """The least number of seeds, more than there are, whose p-value would be small enough if mean and scatter stayed.

    Args:
        by_seed: differences in points.
        sought: their mean, from what is tested.
        sides: of the test.
        factor: of Holm's correction, as `open_factor` says.
    """
    if len(by_seed) < 2 or sought == 0.0:
        return None
    deviation = float(by_seed.std(ddof=1))
    for seeds in range(max(SEEDS_FOR_A_CLAIM, len(by_seed) + 1), MOST_SEEDS + 1):
        far = abs(sought) * math.sqrt(seeds) / deviation if deviation else math.inf
        if factor * sides * float(stats.t.sf(far, seeds - 1)) < 1 - LEVEL:
            return seeds
    return None

"""What a study's runs say of a claim: a paired difference, its interval, and a verdict corrected within a family.

A claim is about two methods of a study that share everything else. Its p-value is of a paired t-test over seeds and
test rows at once (`fedpeft.studies.statistics`), two-sided since it is said to hold or not to: of a difference of zero
where a method is said to be better, of a loss of `margin` points where it is said to be no worse. Within a family of
comparisons the p-values are Holm's: the smallest times the number of claims, the next times one less, never falling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedpeft.studies.statistics import LEVEL, SEEDS_FOR_A_CLAIM, Array, Uncertainty, compute_uncertainty

MOST_SEEDS = 100
"""Where so many would not do, no number is said."""

HOLDS, FAILS, OPEN = "holds", "does not hold", "not resolved"


@dataclass(frozen=True)
class Evidence:
    """Differences in points, method minus baseline: one a seed, and where rows are known one a test row.

    Attributes:
        by_seed: float64 (seeds,).
        by_row: float64 (rows,), with the same mean; empty where only totals are known.
        rest: variance of what is left of single differences (`fedpeft.studies.statistics.PairedDifferences`).
    """

    by_seed: Array
    by_row: Array = field(default_factory=lambda: np.zeros(0))
    rest: float = 0.0

    @property
    def difference(self) -> float:
        """Their mean."""
        return float(self.by_seed.mean())

    @property
    def uncertainty(self) -> Uncertainty:
        """Of the mean, for other seeds on other rows."""
        return compute_uncertainty(self.by_seed, self.by_row, self.rest)

    @property
    def of_rows(self) -> float:
        """The part of its variance that more seeds don't make smaller."""
        if len(self.by_row) < 2:
            return 0.0
        single = float(self.by_row.var(ddof=1)) - self.rest / len(self.by_seed)
        return max(0.0, single) / len(self.by_row)

    def extrapolate_to_seeds(self, seeds: int) -> Uncertainty:
        """As `uncertainty`, with so many seeds of the same mean and scatter."""
        fixed, now = self.of_rows, len(self.by_seed)
        of_seeds = float(self.by_seed.var(ddof=1)) / seeds
        falling = max(0.0, self.uncertainty.seen[-1][0] - fixed) * now / seeds
        variance = falling + fixed
        known = falling**2 / (seeds - 1) + (fixed**2 / (len(self.by_row) - 1) if fixed else 0.0)
        freedom = max(seeds - 1, variance**2 / known) if known else seeds - 1
        return Uncertainty(((of_seeds, seeds - 1), (variance, freedom)))


@dataclass(frozen=True)
class Verdict:
    """What is said of a claim, with the p-value after Holm's correction."""

    word: str
    probability: float
    needed: int | None = None
    """Seeds with which a difference as large, and as scattered, would be resolved; None where none is known."""
    of_rows: bool = False
    """Whether no number of seeds would do, since the test rows are too few."""


def correct_holm(probabilities: Sequence[float]) -> list[float]:
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


def compute_probability(evidence: Evidence, margin: float | None) -> float:
    """Before any correction: of no difference, or of a loss of `margin`."""
    return evidence.uncertainty.compute_probability(evidence.difference + (margin or 0.0))


def decide_verdict(evidence: Evidence, margin: float | None, corrected: float, factor: int = 1) -> Verdict:
    """Holds, does not hold, or not resolved.

    Args:
        margin: None: the method is said to be better than its baseline.
        corrected: the p-value after Holm's correction.
        factor: of that correction, for a claim that is to be resolved next (`open_factor`).
    """
    sought = evidence.difference + (margin or 0.0)
    if len(evidence.by_seed) >= SEEDS_FOR_A_CLAIM and corrected < 1 - LEVEL:
        return Verdict(HOLDS if sought > 0 else FAILS, corrected)
    rows = Uncertainty(((evidence.of_rows, max(1, len(evidence.by_row) - 1)),))
    if factor * rows.compute_probability(sought) >= 1 - LEVEL:
        return Verdict(OPEN, corrected, of_rows=bool(evidence.of_rows))
    return Verdict(OPEN, corrected, count_needed_seeds(evidence, sought, factor))


def count_needed_seeds(evidence: Evidence, sought: float, factor: int) -> int | None:
    """The least number of seeds, more than there are, whose p-value would be small enough if mean and scatter stayed.

    Args:
        sought: how far the mean is from what is tested, in points.
        factor: of Holm's correction, as `open_factor` says.
    """
    now = len(evidence.by_seed)
    if now < 2 or sought == 0.0:
        return None
    for seeds in range(max(SEEDS_FOR_A_CLAIM, now + 1), MOST_SEEDS + 1):
        if factor * evidence.extrapolate_to_seeds(seeds).compute_probability(sought) < 1 - LEVEL:
            return seeds
    return None

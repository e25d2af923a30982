"""Verdicts on claims: a paired difference, its interval, and a p-value corrected within a family.

A claim is about two methods of a study that share everything else. Its p-value comes from a paired t-test over seeds
and test examples at once (`fedpeft.study.statistics`). The test is two-sided, since the verdict can be that a claim
holds or that it fails. A claim that a method is better is tested against a difference of zero. A claim that it is no
worse is tested against a loss of `margin` points. Within a family, Holm's correction multiplies the smallest p-value by
the number of claims, the next by one less, and never lets the values fall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedpeft.study.statistics import LEVEL, SEEDS_FOR_A_CLAIM, Array, Uncertainty, compute_uncertainty

MOST_SEEDS = 100
"""Most seeds that `count_needed_seeds` tries; if more are needed, it returns None."""

HOLDS, FAILS, OPEN = "holds", "does not hold", "not resolved"


@dataclass(frozen=True)
class Evidence:
    """Paired differences in points, method minus baseline, by seed and, if known, by test example.

    Attributes:
        by_seed: float64 (seeds,).
        by_row: float64 (examples,), with the same mean; empty if only totals are known.
        rest: residual variance (`fedpeft.study.statistics.PairedDifferences`).
    """

    by_seed: Array
    by_row: Array = field(default_factory=lambda: np.zeros(0))
    rest: float = 0.0

    @property
    def difference(self) -> float:
        """The mean difference."""
        return float(self.by_seed.mean())

    @property
    def uncertainty(self) -> Uncertainty:
        """The uncertainty of the mean, for other seeds on other examples."""
        return compute_uncertainty(self.by_seed, self.by_row, self.rest)

    @property
    def of_rows(self) -> float:
        """The part of the mean's variance that more seeds do not reduce."""
        if len(self.by_row) < 2:
            return 0.0
        single = float(self.by_row.var(ddof=1)) - self.rest / len(self.by_seed)
        return max(0.0, single) / len(self.by_row)

    def extrapolate_to_seeds(self, seeds: int) -> Uncertainty:
        """Return the `uncertainty` for this number of seeds with the same mean and variance."""
        fixed, now = self.of_rows, len(self.by_seed)
        of_seeds = float(self.by_seed.var(ddof=1)) / seeds
        falling = max(0.0, self.uncertainty.seen[-1][0] - fixed) * now / seeds
        variance = falling + fixed
        known = falling**2 / (seeds - 1) + (fixed**2 / (len(self.by_row) - 1) if fixed else 0.0)
        freedom = max(seeds - 1, variance**2 / known) if known else seeds - 1
        return Uncertainty(((of_seeds, seeds - 1), (variance, freedom)))


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim, with its p-value after Holm's correction."""

    word: str
    probability: float
    needed: int | None = None
    """Seeds that would resolve a difference with this mean and variance; None if unknown."""
    of_rows: bool = False
    """Whether no number of seeds would be enough, since there are too few test examples."""


def correct_holm(probabilities: Sequence[float]) -> list[float]:
    """Apply Holm's step-down correction (Holm, 1979); the order stays as given."""
    order = sorted(range(len(probabilities)), key=lambda i: probabilities[i])
    corrected, highest = [0.0] * len(order), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * probabilities[index]))
        corrected[index] = highest
    return corrected


def open_factor(corrected: Sequence[float]) -> int:
    """Return the factor of Holm's correction for the next claim to reject.

    This is the number of claims that are not rejected.
    """
    return sum(p >= 1 - LEVEL for p in corrected)


def compute_probability(evidence: Evidence, margin: float | None) -> float:
    """Return the uncorrected p-value of no difference, or of a loss of `margin` points."""
    return evidence.uncertainty.compute_probability(evidence.difference + (margin or 0.0))


def decide_verdict(evidence: Evidence, margin: float | None, corrected: float, factor: int = 1) -> Verdict:
    """Return whether a claim holds, does not hold or is not resolved.

    Args:
        evidence: the paired differences of the claim.
        margin: points that the method may lose; None if it is claimed to be better than its baseline.
        corrected: the p-value after Holm's correction.
        factor: factor of that correction for the next claim to resolve (`open_factor`).
    """
    sought = evidence.difference + (margin or 0.0)
    if len(evidence.by_seed) >= SEEDS_FOR_A_CLAIM and corrected < 1 - LEVEL:
        return Verdict(HOLDS if sought > 0 else FAILS, corrected)
    rows = Uncertainty(((evidence.of_rows, max(1, len(evidence.by_row) - 1)),))
    if factor * rows.compute_probability(sought) >= 1 - LEVEL:
        return Verdict(OPEN, corrected, of_rows=bool(evidence.of_rows))
    return Verdict(OPEN, corrected, count_needed_seeds(evidence, sought, factor))


def count_needed_seeds(evidence: Evidence, sought: float, factor: int) -> int | None:
    """Return the smallest larger number of seeds that would resolve a claim with the same mean and variance.

    Args:
        evidence: the paired differences of the claim.
        sought: distance of the mean from the tested value, in points.
        factor: factor of Holm's correction (`open_factor`).
    """
    now = len(evidence.by_seed)
    if now < 2 or sought == 0.0:
        return None
    for seeds in range(max(SEEDS_FOR_A_CLAIM, now + 1), MOST_SEEDS + 1):
        if factor * evidence.extrapolate_to_seeds(seeds).compute_probability(sought) < 1 - LEVEL:
            return seeds
    return None

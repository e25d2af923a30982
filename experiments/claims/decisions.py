"""Decide whether one method is better than another, worse or equivalent, with one correction for a whole page.

Each claim has a mean paired difference d and up to two null hypotheses:

    no difference:      d = 0           two-sided; rejected: better or worse, by the sign of d
    beyond the margin:  |d| >= margin   two one-sided tests (Schuirmann, 1987); rejected: equivalent

Both can be rejected, and then both verdicts are printed. Both cannot be true, so K claims have at most K true
hypotheses. The correction is Holm's step-down procedure with Shaffer's count (Shaffer, 1986): the next smallest p-value
is multiplied by the number of claims that still have a hypothesis which is not rejected. Holm's own count per claim
would be wrong here: a claim whose difference is shown may still be falsely called equivalent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.claims.verdicts import Evidence
from fedpeft.study.statistics import LEVEL, SEEDS_FOR_A_CLAIM, Uncertainty

BETTER, WORSE, EQUIVALENT, UNDECIDED = "better", "worse", "equivalent", "undecided"

ALPHA = 1 - LEVEL
"""Largest probability of at least one false verdict on the page."""


@dataclass(frozen=True)
class PValues:
    """The p-values of a claim's hypotheses.

    Attributes:
        no_difference: p-value of d = 0.
        beyond_margin: p-value of |d| >= margin; None if the claim is not tested for equivalence.
    """

    no_difference: float
    beyond_margin: float | None


def compute_tests(evidence: Evidence, margin: float | None) -> PValues:
    """Return the uncorrected p-values of a claim; both are 1 with fewer than `SEEDS_FOR_A_CLAIM` seeds.

    Args:
        evidence: differences, positive where the method is better.
        margin: in the unit of the differences; None: no test for equivalence.
    """
    if len(evidence.by_seed) < SEEDS_FOR_A_CLAIM:
        return PValues(1.0, None if margin is None else 1.0)
    uncertainty = evidence.uncertainty
    beyond = None if margin is None else _compute_beyond(uncertainty, margin - abs(evidence.difference))
    return PValues(uncertainty.compute_probability(evidence.difference), beyond)


def _compute_beyond(uncertainty: Uncertainty, room: float) -> float:
    """Return the one-sided p-value of a mean that lies `room` inside the margin."""
    return uncertainty.compute_probability(room) / 2 if room > 0 else 1.0


def correct(tests: Sequence[PValues]) -> list[PValues]:
    """Return the p-values of a page's claims after the correction, in the order given.

    A hypothesis that is not tested yet counts with p = 1. A smaller value in its place never raises a corrected
    p-value: the multiplier of each other hypothesis stays or falls. The hypothesis itself is multiplied by no more than
    the next larger one was before.
    """
    asked = [(t.no_difference, i, 0) for i, t in enumerate(tests)]
    asked += [(t.beyond_margin, i, 1) for i, t in enumerate(tests) if t.beyond_margin is not None]
    left = [1 if t.beyond_margin is None else 2 for t in tests]
    corrected: list[list[float | None]] = [[None, None] for _ in tests]
    highest = 0.0
    for p, claim, which in sorted(asked):
        highest = max(highest, min(1.0, p * sum(n > 0 for n in left)))
        corrected[claim][which] = highest
        left[claim] -= 1
    return [PValues(_require_value(first), second) for first, second in corrected]


def _require_value(p: float | None) -> float:
    assert p is not None
    return p


def decide(difference: float, corrected: PValues) -> tuple[str, ...]:
    """Return the verdicts of a claim: better or worse, equivalent, both, or undecided."""
    words = []
    if corrected.no_difference < ALPHA:
        words.append(BETTER if difference > 0 else WORSE)
    if corrected.beyond_margin is not None and corrected.beyond_margin < ALPHA:
        words.append(EQUIVALENT)
    return tuple(words) or (UNDECIDED,)


def compute_power(uncertainty: Uncertainty, count: int, margin: float | None) -> tuple[float, float]:
    """Return the smallest difference that is found with a power of 80 %, and the power of equivalence at d = 0.

    The correction is the hardest one: by `count`. The standard error is taken as known.

    Args:
        uncertainty: of the mean with the planned number of seeds.
        count: number of claims on the page.
        margin: None: the power of equivalence is not a number.
    """
    from scipy import stats  # type: ignore[import-untyped, unused-ignore]

    variance, freedom = uncertainty.seen[-1]
    error = math.sqrt(variance)
    level = 1 - ALPHA / count
    least = uncertainty.compute_half_width(level, 2) + float(stats.t.ppf(0.8, freedom)) * error
    if margin is None:
        return least, math.nan
    room = (margin - uncertainty.compute_half_width(level, 1)) / error
    return least, max(0.0, 2 * float(stats.t.cdf(room, freedom)) - 1)

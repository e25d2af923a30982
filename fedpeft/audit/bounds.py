"""Lower bounds on epsilon from a one-run audit, computed from the canaries' presence and scores.

A fair coin decides whether a canary is in the data. From the released numbers each canary gets a score, which is higher
if it seems to be in. If the scores reveal more than (epsilon, delta) allows, the mechanism does not keep its claim.

    one-run bound   Steinke, Nasr, Jagielski, arXiv 2305.08846, theorem 5.2: of r guesses, the number of right ones is
                    dominated by Binomial(r, e^eps / (1 + e^eps)), up to a term in delta. Valid for any mechanism,
                    but loose.
    Gaussian fit    the distance of the two groups' means over their common standard deviation is the mu of a Gaussian
                    mechanism; at its lower confidence limit, epsilon is that mechanism's. Sharp where scores are
                    Gaussian, which they are at q = 1; at q < 1 it is lower than need be.

Both hold with probability 99.9 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, norm

CONFIDENCE = 0.999

SHARES = (0.1, 0.5, 1.0)
"""Shares of the canaries for which guesses are made, half of them for the highest scores and half for the lowest.

Every share is tried, at a confidence that allows for it.
"""

LARGEST = 1000.0


@dataclass(frozen=True)
class Bounds:
    """Lower bounds on epsilon."""

    one_run: float
    fit: float

    @property
    def largest(self) -> float:
        """Stronger bound."""
        return max(self.one_run, self.fit)


def compute_bounds(scores: np.ndarray, included: np.ndarray, delta: float) -> Bounds:
    """Return both bounds at `delta`, from scores (m,) and whether each canary is in the data, booleans (m,)."""
    return Bounds(compute_one_run_bound(scores, included, delta), compute_gaussian_fit_bound(scores, included, delta))


def compute_one_run_bound(scores: np.ndarray, included: np.ndarray, delta: float) -> float:
    """Return the largest epsilon that the number of right guesses refutes."""
    order = np.argsort(-scores, kind="stable")
    m = len(scores)

    def compute_bound(share: float) -> float:
        half = max(1, round(m * share / 2))
        right = int(included[order[:half]].sum() + (~included[order[-half:]]).sum())
        chance = (1 - CONFIDENCE) / len(SHARES)
        return find_largest_refuted(lambda epsilon: compute_p_value(m, 2 * half, right, epsilon, delta) < chance)

    return max(map(compute_bound, SHARES))


def compute_p_value(m: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return the probability of at least `right` of `guesses` being right, with m canaries, under (epsilon, delta)."""
    q = 1 / (1 + math.exp(-epsilon))
    beta = float(binom.sf(right - 1, guesses, q))
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, q))  # P[right > W >= right - i], i = 1, 2, ...
    alpha = float((below / np.arange(1, right + 1)).max()) if right else 0.0
    return min(1.0, beta + 2 * m * delta * alpha)


def compute_gaussian_fit_bound(scores: np.ndarray, included: np.ndarray, delta: float) -> float:
    """Return epsilon of the Gaussian mechanism whose mu is the lower confidence limit."""
    inside, outside = scores[included], scores[~included]
    freedom = len(scores) - 2
    pooled = ((inside.var() * len(inside) + outside.var() * len(outside)) / freedom) ** 0.5
    gap = float(inside.mean() - outside.mean())
    if pooled == 0:
        return LARGEST if gap > 0 else 0.0
    mu = gap / pooled
    error = (1 / len(inside) + 1 / len(outside) + mu**2 / (2 * freedom)) ** 0.5
    return compute_gaussian_epsilon(mu - norm.ppf(CONFIDENCE) * error, delta)


def compute_gaussian_epsilon(mu: float, delta: float) -> float:
    """Return epsilon of two unit Gaussians mu apart, by inversion of their privacy profile.

    Source: Balle and Wang, arXiv 1805.06530.
    """

    def is_too_small(epsilon: float) -> bool:
        reached = norm.cdf(mu / 2 - epsilon / mu) - math.exp(
            min(700.0, epsilon + float(norm.logcdf(-mu / 2 - epsilon / mu)))
        )
        return bool(reached > delta)

    return find_largest_refuted(is_too_small) if mu > 0 else 0.0


def find_largest_refuted(refuted: Callable[[float], bool]) -> float:
    """Return the largest epsilon for which `refuted` holds, to 1e-3; 0 if it holds for none."""
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
        if high > LARGEST:
            return LARGEST
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low

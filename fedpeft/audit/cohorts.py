"""Privacy cost of releasing the sizes of secret cohorts.

Each client joins a round with probability q. So the cohort's size is Binomial(N, q) if a client is in the data, and
Binomial(N - 1, q) otherwise. Each released size is therefore a privacy release, and their privacy losses add up to an
epsilon. No ledger charges it, so the released data of a round must not depend on the size.
"""

from __future__ import annotations

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.stats import binom

from fedpeft.audit.bounds import LARGEST, find_largest_refuted
from fedpeft.reporting.observer import RoundResult

STEP = 1e-4
"""Step of the grid that losses are rounded to."""

RARE = 1e-14
"""Probability below which a size counts as fully revealing: its loss is large, and its probability negligible."""


def compute_size_epsilon(clients: int, rate: float, rounds: int, delta: float) -> float:
    """Return epsilon at `delta` of releasing the sizes of `rounds` cohorts.

    It is exact up to the grid of losses, and infinite if no epsilon holds.

    Args:
        clients: N, with the client in question, at least 1.
        rate: q, above 0, at most 1.
        rounds: number of released sizes.
        delta: probability for which epsilon need not hold.
    """
    sizes = np.arange(clients + 1)
    inside, outside = binom.pmf(sizes, clients, rate), binom.pmf(sizes, clients - 1, rate)
    return max(_compute_epsilon(inside, outside, rounds, delta), _compute_epsilon(outside, inside, rounds, delta))


def _compute_epsilon(p: np.ndarray, q: np.ndarray, rounds: int, delta: float) -> float:
    """Return epsilon of P^rounds against Q^rounds, in one direction, from their privacy loss distribution on a grid."""
    revealing = (q == 0) | (p < RARE)  # an outcome that is impossible under Q reveals everything
    outright = 1 - (1 - float(p[revealing].sum())) ** rounds
    steps = np.rint(np.log(p[~revealing] / q[~revealing]) / STEP).astype(int)
    lowest = int(steps.min(initial=0))
    one = np.bincount(steps - lowest, weights=p[~revealing], minlength=1)
    length = rounds * (len(one) - 1) + 1
    points = next_fast_len(length, real=True)
    total = np.maximum(irfft(rfft(one, points) ** rounds, points)[:length], 0.0)
    losses = STEP * (rounds * lowest + np.arange(len(total)))

    def compute_delta(epsilon: float) -> float:
        above = losses > epsilon
        return outright - float((total[above] * np.expm1(epsilon - losses[above])).sum())

    if compute_delta(LARGEST) > delta:
        return float("inf")
    return find_largest_refuted(lambda epsilon: compute_delta(epsilon) > delta)


def is_size_revealed(expected: int) -> bool:
    """Return whether a round's public result depends on the size of a secret cohort."""
    return len({_create_result(size, expected) for size in (0, 1, expected, expected + 1)}) > 1


def _create_result(size: int, expected: int) -> RoundResult:
    """Return the result of a round with `size` clients, half of them failing, with a second for each."""
    seconds = float(size)
    result = RoundResult(1, size, size // 2, None, None, None, 1, 1, 1.0, seconds, seconds, aggregation_seconds=seconds)
    return result.hide_cohort(expected)

"""What the sizes of secret cohorts would cost, were they told.

Clients join a round by coins, so the number of them is Binomial(N, q) where a client is in the data, and
Binomial(N - 1, q) where it is not: each number told is a release, and all of them together have the epsilon that their
privacy losses add up to. No ledger charges it, so nothing that is told of a round may depend on the size.
"""

from __future__ import annotations

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.stats import binom

from fedpeft.audit.bounds import LARGEST, find_largest_refuted
from fedpeft.reporting.observer import RoundResult

STEP = 1e-4
"""Of the grid that losses are rounded to."""

RARE = 1e-14
"""Sizes that are less probable count as if they told all: their losses are large, and their probability is nothing."""


def compute_size_epsilon(clients: int, rate: float, rounds: int, delta: float) -> float:
    """Epsilon at `delta` of telling the sizes of `rounds` cohorts, exact but for the grid; infinite where none holds.

    Args:
        clients: N, with the client in question, at least 1.
        rate: q, above 0, at most 1.
    """
    sizes = np.arange(clients + 1)
    inside, outside = binom.pmf(sizes, clients, rate), binom.pmf(sizes, clients - 1, rate)
    return max(_compute_epsilon(inside, outside, rounds, delta), _compute_epsilon(outside, inside, rounds, delta))


def _compute_epsilon(p: np.ndarray, q: np.ndarray, rounds: int, delta: float) -> float:
    """Of P^rounds against Q^rounds, one direction; by their distribution of losses, at steps of a grid."""
    telling = (q == 0) | (p < RARE)  # what Q never does tells all
    outright = 1 - (1 - float(p[telling].sum())) ** rounds
    steps = np.rint(np.log(p[~telling] / q[~telling]) / STEP).astype(int)
    lowest = int(steps.min(initial=0))
    one = np.bincount(steps - lowest, weights=p[~telling], minlength=1)
    length = rounds * (len(one) - 1) + 1
    points = next_fast_len(length, real=True)
    total = np.maximum(irfft(rfft(one, points) ** rounds, points)[:length], 0.0)
    losses = STEP * (rounds * lowest + np.arange(len(total)))

    def reached(epsilon: float) -> float:
        above = losses > epsilon
        return outright - float((total[above] * np.expm1(epsilon - losses[above])).sum())

    if reached(LARGEST) > delta:
        return float("inf")
    return find_largest_refuted(lambda epsilon: reached(epsilon) > delta)


def is_size_revealed(expected: int) -> bool:
    """Whether what the server tells of a round with a secret cohort depends on how many clients are in it."""
    return len({_create_result(size, expected) for size in (0, 1, expected, expected + 1)}) > 1


def _create_result(size: int, expected: int) -> RoundResult:
    """Of a round with `size` clients, some of them failing, each taking a second; all else alike."""
    seconds = float(size)
    result = RoundResult(1, size, size // 2, None, None, None, 1, 1, 1.0, seconds, seconds, aggregation_seconds=seconds)
    return result.hide_cohort(expected)

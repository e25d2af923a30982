"""Skellam noise on a grid that clients have in common (Agarwal, Kairouz, Liu, arXiv 2110.04995), and the cost of a sum.

    y = sum_k floor(x_k / step + u_k) + N,   N ~ Skellam of variance mu in each of d entries,   u_k uniform

Skellam noise is the difference of two equal Poisson numbers and closed under sums: n shares of variance mu / n make mu.
One unit more or less changes some x_k by at most C, which is r = C / step steps. With u the same for both, the integers
differ by W, which is distributed as that difference after stochastic rounding. Theorem 3.5 of the paper, for whole
orders a > 1:

    D_a <= a |W|^2 / (2 mu) + min(((2 a - 1) |W|^2 + 6 |W|_1) / (4 mu^2), 3 |W|_1 / (2 mu))
        <= a |W|^2 / (2 m),   1 / m = min(1 + 2.25 / mu, 2.5) / mu        (|W|_1 <= |W|^2: they are integers)

exp((a - 1) D_a) is jointly convex, so its mean over u bounds that of the release. An entry of W is x + e, where x is
the exact difference and p its fraction. Then e^2 = (1 - 2 p) e + p (1 - p), and Hoeffding's lemma for e in [-p, 1 - p]
gives

    log E exp(t |W|^2) <= t (r^2 + d / 4) + t^2 (r + sqrt(d) / 2)^2 / 2,   t = a (a - 1) / (2 m)
    D_a <= a / (2 z^2) + c a^2 (a - 1),   z^2 = m / (r^2 + d / 4),   c = (r + sqrt(d) / 2)^2 / (8 m^2)

So no vector must be rounded again until its norm is small. Kairouz, Liu, Steinke (arXiv 2102.06387) do that, and pay
sqrt(2 log(1 / beta)) for it. The reduction modulo the modulus and all later steps are post-processing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedpeft.errors import PrivacyError
from fedpeft.privacy.accountant import Event

SPREAD: Final = 4.0
"""Standard deviations of the sum that half of the modulus holds.

Values beyond them wrap. If the sum is normal, that adds 0.4 % to the variance of the noise, and nothing to its cost.
"""

MOST_VARIANCE: Final = 2.0**31
"""The largest variance of one client's share, in steps^2, whose Poisson numbers doubles represent exactly."""

MOST_GROWTH: Final = 1.5
"""The largest factor by which rounding may lengthen the contribution that noise must hide."""


@dataclass(frozen=True)
class Grid:
    """The grid and the noise of one type of sum.

    Attributes:
        size: d, the most entries.
        step: width of the grid.
        radius: r, the most that one unit changes the sum by, in steps.
        variance: mu, the least variance of each entry of the sum, in steps^2, with all the dropouts that are permitted.
    """

    size: int
    step: float
    radius: float
    variance: float

    @property
    def growth(self) -> float:
        """The factor by which rounding lengthens one unit's contribution, and so the noise that hides it."""
        return math.sqrt(1 + self.size / 4 / self.radius**2)

    def event(self, rate: float, share: float = 1.0, known: float = 0.0) -> Event:
        """Return the cost of one sum.

        Args:
            rate: probability with which a unit joins, above 0, at most 1.
            share: probability with which its client joins (see `Event`).
            known: share of the noise that the observer knows, from 0, below 1.
        """
        r, root, mu = self.radius, math.sqrt(self.size), self.variance * (1 - known)
        if not mu:
            return Event(0.0, rate, 0.0, share)
        m = mu / min(1 + 2.25 / mu, 2.5)
        return Event(math.sqrt(m / (r**2 + self.size / 4)), rate, (r + root / 2) ** 2 / (8 * m**2), share)

    def share(self, clients: int, dropouts: int) -> float:
        """Return the variance of the noise that each of `clients` adds if `dropouts` of them may drop out."""
        return self.variance / (clients - dropouts)


def widest_grid(
    noise: float, clip: float, bits: int, clients: int, dropouts: int, sizes: tuple[int, int], signal: float
) -> Grid:
    """Return the finest grid on which the sum fits into its modulus.

    The sum's entries have the variance of all noise if nobody drops out, and n / 4 from rounding. After a rotation they
    also have at most |sum|^2 / 2^p, with the largest 2^p that is at most d.

    Args:
        noise: sqrt(mu) step / C, above 0; see `Grid`.
        clip: C.
        bits: bits of the modulus.
        clients: n.
        dropouts: number of clients that may drop out.
        sizes: the fewest and the most entries of such a sum.
        signal: the largest norm that the sum can have, all clients together.

    Raises:
        PrivacyError: the grid would be so coarse that rounding costs more than noise; the message contains the number
            of bits that are enough.
    """
    fewest, most = sizes

    def radius(bits: int) -> float:
        held = (2.0 ** (bits - 1) / SPREAD) ** 2 - clients / 4
        each = (signal / clip) ** 2 / 2 ** (fewest.bit_length() - 1) + noise**2 * clients / (clients - dropouts)
        return math.sqrt(max(0.0, min(held / each, MOST_VARIANCE * (clients - dropouts) / noise**2)))

    def enough(bits: int) -> bool:
        return radius(bits) ** 2 * (MOST_GROWTH**2 - 1) >= most / 4

    if not enough(bits):
        needed = next((more for more in range(bits, 33) if enough(more)), None)
        remedy = f"give bits={needed} or more, or " if needed else ""
        raise PrivacyError(
            f"FP7084 integers of {bits} bits are too small for a sum of {clients} clients with noise multiplier "
            f"{noise:.3g}: rounding {most:,} entries to them would lengthen it by more than {MOST_GROWTH - 1:.0%}; "
            f"{remedy}train fewer parameters, or ask for a larger epsilon"
        )
    r = radius(bits)
    return Grid(most, clip / r, r, (noise * r) ** 2)


def draw_skellam(random: np.random.Generator, variance: float, size: int) -> np.ndarray:
    """Draw `size` independent Skellam numbers of mean 0 and this variance, int64; large variances in pieces."""
    pieces = max(1, math.ceil(variance / MOST_VARIANCE))
    each, total = variance / pieces / 2, np.zeros(size, np.int64)
    for _ in range(pieces):
        total += random.poisson(each, size) - random.poisson(each, size)
    return total

"""Renyi divergences of a release that a unit joins with a secret probability.

They follow from the divergences of a release that the unit always joins. P and Q are the release with the unit and
without it. Given everything that is drawn except the noise, both are one symmetric distribution, shifted, so a
reflection exchanges them. Then the divergence of the mixture q P + (1 - q) Q from Q is the larger one of both
directions (Mironov, Talwar, Zhang, arXiv 1908.10530, theorem 5). For whole orders a

    exp((a - 1) D_a) = sum_k binomial(a, k) (1 - q)^(a - k) q^k exp((k - 1) D_k(P, Q))

This rises with each D_k, so upper bounds may stand there. Mixtures over what else is drawn follow by joint convexity.

A client may take part with probability p, by a secret coin. If the unit is an example, an observer who knows the
client's other examples may see in the release whether the client takes part. If the unit is a client, an observer who
knows the others' coins may see in the noise how many take part. Then joint convexity gives this bound, which can't be
improved in general:

    exp((a - 1) D_a') = 1 + p (exp((a - 1) D_a) - 1)
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.special import gammaln, logsumexp

WHOLE_ORDERS: Final = (*range(2, 65), *range(68, 129, 4), *range(144, 257, 16), *range(320, 1025, 64))
"""Orders a for releases whose divergences are known only at whole orders."""


def compute_unsampled_rdp(orders: np.ndarray, noise: float, rounding: float) -> np.ndarray:
    """Return D_a of a release that the unit always joins, (orders,); see `fedpeft.privacy.accountant.Event`."""
    found: np.ndarray = orders / (2 * noise**2) + rounding * orders**2 * (orders - 1)
    return found


def rdp_of_sampled(noise: float, rate: float, rounding: float, share: float) -> np.ndarray:
    """Return D_a at `WHOLE_ORDERS`; see `fedpeft.privacy.accountant.Event`."""
    orders = np.array(WHOLE_ORDERS, dtype=np.float64)
    always = compute_unsampled_rdp(orders, noise, rounding)
    found = (
        always
        if rate == 1
        else np.minimum(always, [_compute_sampled_rdp(int(a), noise, rate, rounding) for a in orders])
    )
    if share < 1:
        found = np.logaddexp(np.log1p(-share), np.log(share) + (orders - 1) * found) / (orders - 1)
    return np.asarray(found)


def _compute_sampled_rdp(order: int, noise: float, rate: float, rounding: float) -> float:
    k = np.arange(order + 1, dtype=np.float64)
    chosen = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    grown = np.where(k > 1, (k - 1) * compute_unsampled_rdp(k, noise, rounding), 0.0)
    terms = chosen + (order - k) * np.log1p(-rate) + k * np.log(rate) + grown
    return float(logsumexp(terms)) / (order - 1)

"""What a sequence of noisy releases costs: epsilon at a given delta, and the noise that a given epsilon needs.

A release is a Poisson-subsampled Gaussian: each unit is in with probability q, what it adds has norm at most C, the sum
gets noise of standard deviation z C. Equal releases are merged into one event; events are composed numerically by their
privacy loss random variables (PRV; Gopi et al., arXiv 2106.02848), as Opacus implements it, and its upper bound is
reported. Neighbours are add/remove: one unit more or less.

RDP is 11 to 22 % looser. It is used where "surely within the budget" is the question, because it costs nothing, for
Skellam noise (`fedpeft.privacy.skellam`), of which divergences are known and privacy losses are not, and for deltas so
small that PRV's rounding would count (`ROUNDING`).

Opacus is imported where it is used: it costs half a second and 20 MB that a run without privacy need not pay.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedpeft.errors import PrivacyError
from fedpeft.privacy.sampled_rdp import WHOLE_ORDERS, rdp_of_sampled

if TYPE_CHECKING:
    from opacus.accountants import PRVAccountant

ERROR = 0.01
"""Absolute error of a reported epsilon up to 5; above, `RELATIVE_ERROR`. Both only ever raise it."""

RELATIVE_ERROR = 0.002

LARGEST = 1000.0
"""A larger epsilon protects nobody and is not computed in full: RDP's bound is reported instead."""

SMALLEST_DELTA, ROUNDING = 1e-11, 2.0**-48
"""Below the first, or the second times the releases, RDP's bound is reported: PRV composes by Fourier transforms, whose
rounding is an absolute error of delta that grows with the releases (1e-16 of each, measured with Gaussian noise), so
that its epsilon would be below the exact one."""

MOST_RELEASES = 1_000_000
"""More take seconds and gigabytes to compose, so RDP's bound is reported instead; no run comes near."""


class Event(NamedTuple):
    """One kind of release.

    Attributes:
        noise: multiplier z, at least 0.
        rate: with which a unit is in it, above 0, at most 1.
        rounding: c; 0: the noise is Gaussian. Above: Skellam's on a grid, whose Renyi divergence of each whole order
            a > 1 is at most a / (2 z^2) + c a^2 (a - 1).
        share: with which, by a secret coin that the release may tell, the unit's client takes part at all.
    """

    noise: float
    rate: float
    rounding: float = 0.0
    share: float = 1.0


Events = Mapping[Event, int]
"""How often each kind of release has happened."""


def gaussian(events: Events) -> bool:
    """Whether all noise is Gaussian."""
    return not any(event.rounding or event.share < 1 for event in events)


@lru_cache(maxsize=1 << 16)
def _rdp_at(event: Event, order: float) -> float:
    """Of a release with Gaussian noise."""
    from opacus.accountants.analysis.rdp import compute_rdp

    return float(compute_rdp(q=event.rate, noise_multiplier=event.noise, steps=1, orders=float(order)))


@lru_cache(maxsize=4096)
def _rdp_at_whole(event: Event) -> np.ndarray:
    """Of any release, at `WHOLE_ORDERS`."""
    return rdp_of_sampled(event.noise, event.rate, event.rounding, event.share)


def _bound(orders: Sequence[float], rdp: Iterable[np.ndarray], delta: float) -> tuple[float, float]:
    """The least epsilon that one of the orders bounds, and that order, from what each release costs at all of them."""
    from opacus.accountants.analysis.rdp import get_privacy_spent

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the range of orders: the bound is valid, if loose
        bound, best = get_privacy_spent(orders=list(orders), rdp=np.sum(list(rdp), axis=0), delta=delta)
    return float(bound), float(best)


def _least(spent: Events, delta: float) -> float:
    """Of all orders; of Gaussian noise those between whole ones, which are slow series, only beside the best whole one.

    Nothing is lost: with t = a - 1, t D_a is convex, and so is t times the bound, which is that and t log t - (1 + t)
    log(1 + t) + log(1 / delta). So the bound falls up to its least, and rises from there.
    """
    if not gaussian(spent):
        return _bound(WHOLE_ORDERS, (_rdp_at_whole(event) * steps for event, steps in spent.items()), delta)[0]

    from opacus.accountants import RDPAccountant

    def bound(orders: Sequence[float]) -> tuple[float, float]:
        rdp = (np.array([_rdp_at(event, order) for order in orders]) * steps for event, steps in spent.items())
        return _bound(orders, rdp, delta)

    orders: list[float] = list(RDPAccountant.DEFAULT_ALPHAS)
    whole = [order for order in orders if float(order).is_integer()]
    _, best = bound(whole)
    below = max((order for order in whole if order < best), default=1)
    above = min((order for order in whole if order > best), default=math.inf)
    return bound([order for order in orders if below < order < above])[0]


def rdp_epsilon(events: Events, delta: float) -> float:
    """An upper bound of `epsilon` that costs nothing; infinite without noise, 0 without releases.

    Also infinite where the numbers are beyond what floats can hold: an account must not end a run.
    """
    spent = {event: steps for event, steps in events.items() if steps}
    if not spent:
        return 0.0
    if any(event.noise == 0 for event in spent):
        return float("inf")

    try:
        bound = _least(spent, delta)
    except ArithmeticError:
        return float("inf")
    return float("inf") if math.isnan(bound) else bound


def epsilon(events: Events, delta: float) -> float:
    """Epsilon of all releases together at `delta` (above 0, below 1), an upper bound; infinite without noise.

    By PRV, or by RDP if one is not Gaussian or `delta` is too small for PRV.
    """
    return _epsilon(tuple(sorted((event, steps) for event, steps in events.items() if steps)), delta)


def _prv_accountant() -> PRVAccountant:
    """Opacus' accountant, whose domain is found by `rdp_epsilon`: the same least of the same orders, in a fraction of
    the time."""
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.prv.domain import Domain

    class Accountant(PRVAccountant):  # type: ignore[misc]
        """With another way to its domain (Gopi et al., remark 5.6)."""

        def _get_domain(
            self, prvs: Sequence[Any], num_self_compositions: Sequence[int], eps_error: float, delta_error: float
        ) -> Domain:
            steps = sum(num_self_compositions)
            releases = [Event(prv.noise_multiplier, prv.sample_rate) for prv in prvs]
            total = together(*({release: n} for release, n in zip(releases, num_self_compositions, strict=True)))
            tails = [rdp_epsilon({release: 1}, delta_error / (8 * steps)) for release in releases]
            reach = max(rdp_epsilon(total, delta_error / 4), *tails, eps_error) + 3
            return Domain.create_aligned(-reach, reach, eps_error / math.sqrt(steps * math.log(12 / delta_error) / 2))

    return Accountant()


@lru_cache(maxsize=4096)
def _epsilon(history: tuple[tuple[Event, int], ...], delta: float) -> float:
    bound, releases = rdp_epsilon(dict(history), delta), sum(steps for _, steps in history)
    if bound == 0 or bound > LARGEST or releases > MOST_RELEASES:
        return bound
    if delta < max(SMALLEST_DELTA, ROUNDING * releases):
        return bound
    if not gaussian(dict(history)):
        return bound

    accountant = _prv_accountant()
    accountant.history = [(event.noise, event.rate, steps) for event, steps in history]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # logarithms of 0 at q = 1, where they do no harm
        try:
            exact = float(accountant.get_epsilon(delta=delta, eps_error=max(ERROR, RELATIVE_ERROR * bound)))
        except (RuntimeError, ValueError, ArithmeticError):  # out of reach: the looser bound is still a bound
            return bound
    return min(exact, bound)


def is_within(events: Events, delta: float, budget: float) -> bool:
    """Whether epsilon is at most `budget`."""
    return rdp_epsilon(events, delta) <= budget or epsilon(events, delta) <= budget


def noise_for(budget: float, delta: float, rate: float, steps: int, before: Events = MappingProxyType({})) -> float:
    """The smallest noise multiplier, to 0.5 %, that keeps `steps` releases at sampling rate `rate` within `budget`.

    Args:
        budget, delta: epsilon at delta, of all releases together.
        rate, steps: of the releases whose noise is asked for.
        before: what is released beside them.

    Raises:
        PrivacyError: no noise multiplier up to a million is enough.
    """

    def all_with(noise: float) -> Events:
        return together(before, {Event(noise, rate): steps})

    def smallest(enough: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
        while high - low > 5e-3 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return low, high

    def loosely(noise: float) -> bool:
        return rdp_epsilon(all_with(noise), delta) <= budget

    def exactly(noise: float) -> bool:
        return is_within(all_with(noise), delta, budget)

    enough = exactly if before else loosely  # where RDP's bound of what came before is above the budget, none would be
    high = 1.0
    while not enough(high):
        high *= 2
        if high > 1e6:
            raise PrivacyError(
                f"FP7028 no noise keeps {steps} releases within epsilon {budget:g}; ask for a larger epsilon"
            )
    if before:
        return smallest(exactly, 1e-2, high)[1]
    _, loose = smallest(loosely, 1e-3, high)
    low = 0.8 * loose  # where RDP is at its loosest, the exact answer is lower still
    while low > 1e-2 and exactly(low):
        low, loose = 0.8 * low, low
    return smallest(exactly, low, loose)[1]


def together(*parts: Events) -> dict[Event, int]:
    """All releases of several accounts in one."""
    found: dict[Event, int] = {}
    for part in parts:
        for event, steps in part.items():
            found[event] = found.get(event, 0) + steps
    return found

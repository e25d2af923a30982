"""The cost of a sequence of noisy releases: epsilon at a given delta, and the noise that a given epsilon needs.

A release is a Poisson-subsampled Gaussian. Each unit joins with probability q, its contribution has norm at most C, and
the sum gets noise of standard deviation z C. Equal releases are merged into one event. Events are composed numerically
by their privacy loss random variables (PRV; Gopi et al., arXiv 2106.02848), as Opacus implements it; its upper bound is
reported. Neighboring datasets differ by one unit (add or remove).

RDP is 11 to 22 % looser, but costs nothing. Three cases use it:

- "Is this surely within the budget?"
- Skellam noise (`fedpeft.privacy.skellam`), whose divergences are known and whose privacy losses are not.
- Deltas so small that the rounding of PRV would matter (`ROUNDING`).

Functions import Opacus when they need it: the import takes half a second and 20 MB, which a run without privacy saves.
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
"""Absolute error of a reported epsilon up to 5; above, `RELATIVE_ERROR` applies. Both only raise epsilon."""

RELATIVE_ERROR = 0.002

LARGEST = 1000.0
"""A larger epsilon protects nobody, so RDP's bound is reported instead of PRV's."""

SMALLEST_DELTA, ROUNDING = 1e-11, 2.0**-48
"""RDP's bound is reported if delta is below `SMALLEST_DELTA`, or below `ROUNDING` times the number of releases.

PRV composes by Fourier transforms. Their rounding is an absolute error of delta, which grows with the releases (1e-16
for each, measured with Gaussian noise). So PRV's epsilon would be below the exact one.
"""

MOST_RELEASES = 1_000_000
"""With more releases PRV needs seconds and gigabytes, so RDP's bound is reported instead. No run comes near."""


class Event(NamedTuple):
    """One type of release.

    Attributes:
        noise: multiplier z, at least 0.
        rate: probability with which a unit joins, above 0, at most 1.
        rounding: c; 0: the noise is Gaussian. Above 0: Skellam noise on a grid, whose Renyi divergence of each whole
            order a > 1 is at most a / (2 z^2) + c a^2 (a - 1).
        share: probability with which the unit's client takes part at all, by a secret coin that the release may reveal.
    """

    noise: float
    rate: float
    rounding: float = 0.0
    share: float = 1.0


Events = Mapping[Event, int]
"""The number of releases of each type."""


def is_gaussian(events: Events) -> bool:
    """Return whether all noise is Gaussian."""
    return not any(event.rounding or event.share < 1 for event in events)


@lru_cache(maxsize=1 << 16)
def _compute_rdp(event: Event, order: float) -> float:
    """Compute the Renyi divergence of a release with Gaussian noise at one order."""
    from opacus.accountants.analysis.rdp import compute_rdp

    return float(compute_rdp(q=event.rate, noise_multiplier=event.noise, steps=1, orders=float(order)))


@lru_cache(maxsize=4096)
def _compute_whole_rdp(event: Event) -> np.ndarray:
    """Compute the Renyi divergences of any release at `WHOLE_ORDERS`."""
    return rdp_of_sampled(event.noise, event.rate, event.rounding, event.share)


def _bound_epsilon(orders: Sequence[float], rdp: Iterable[np.ndarray], delta: float) -> tuple[float, float]:
    """Return the least epsilon that one of the orders bounds, and that order.

    Args:
        orders: Renyi orders.
        rdp: the cost of each release at all orders, (orders,) each.
        delta: the delta that epsilon is stated at.
    """
    from opacus.accountants.analysis.rdp import get_privacy_spent

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the range of orders: the bound is valid, if loose
        bound, best = get_privacy_spent(orders=list(orders), rdp=np.sum(list(rdp), axis=0), delta=delta)
    return float(bound), float(best)


def _find_least_epsilon(spent: Events, delta: float) -> float:
    """Return the least epsilon that any order bounds.

    For Gaussian noise, orders between whole ones are slow series. They are tried only next to the best whole order,
    which loses nothing: with t = a - 1, t D_a is convex. So is t times the bound, which is t D_a + t log t - (1 + t)
    log(1 + t) + log(1 / delta). So the bound falls to its minimum and then rises.
    """
    if not is_gaussian(spent):
        return _bound_epsilon(
            WHOLE_ORDERS, (_compute_whole_rdp(event) * steps for event, steps in spent.items()), delta
        )[0]

    from opacus.accountants import RDPAccountant

    def bound(orders: Sequence[float]) -> tuple[float, float]:
        rdp = (np.array([_compute_rdp(event, order) for order in orders]) * steps for event, steps in spent.items())
        return _bound_epsilon(orders, rdp, delta)

    orders: list[float] = list(RDPAccountant.DEFAULT_ALPHAS)
    whole = [order for order in orders if float(order).is_integer()]
    _, best = bound(whole)
    below = max((order for order in whole if order < best), default=1)
    above = min((order for order in whole if order > best), default=math.inf)
    return bound([order for order in orders if below < order < above])[0]


def rdp_epsilon(events: Events, delta: float) -> float:
    """Return an upper bound of `epsilon` that costs nothing; infinite without noise, 0 without releases.

    It is also infinite if the numbers exceed what floats can hold: an account must not end a run.
    """
    spent = {event: steps for event, steps in events.items() if steps}
    if not spent:
        return 0.0
    if any(event.noise == 0 for event in spent):
        return float("inf")

    try:
        bound = _find_least_epsilon(spent, delta)
    except ArithmeticError:
        return float("inf")
    return float("inf") if math.isnan(bound) else bound


def epsilon(events: Events, delta: float) -> float:
    """Return an upper bound of epsilon for all releases together; infinite without noise.

    PRV computes it. RDP computes it if a release is not Gaussian, or if `delta` is too small for PRV.

    Args:
        events: the releases.
        delta: above 0, below 1.
    """
    return _compute_epsilon(tuple(sorted((event, steps) for event, steps in events.items() if steps)), delta)


def _make_prv_accountant() -> PRVAccountant:
    """Return an accountant of Opacus that finds its domain with `rdp_epsilon`.

    That finds the same minimum over the same orders in a fraction of the time.
    """
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.prv.domain import Domain

    class Accountant(PRVAccountant):  # type: ignore[misc]
        """Accountant that computes its domain in another way (Gopi et al., remark 5.6)."""

        def _get_domain(
            self, prvs: Sequence[Any], num_self_compositions: Sequence[int], eps_error: float, delta_error: float
        ) -> Domain:
            steps = sum(num_self_compositions)
            releases = [Event(prv.noise_multiplier, prv.sample_rate) for prv in prvs]
            total = merge_events(*({release: n} for release, n in zip(releases, num_self_compositions, strict=True)))
            tails = [rdp_epsilon({release: 1}, delta_error / (8 * steps)) for release in releases]
            reach = max(rdp_epsilon(total, delta_error / 4), *tails, eps_error) + 3
            return Domain.create_aligned(-reach, reach, eps_error / math.sqrt(steps * math.log(12 / delta_error) / 2))

    return Accountant()


@lru_cache(maxsize=4096)
def _compute_epsilon(history: tuple[tuple[Event, int], ...], delta: float) -> float:
    bound, releases = rdp_epsilon(dict(history), delta), sum(steps for _, steps in history)
    if bound == 0 or bound > LARGEST or releases > MOST_RELEASES:
        return bound
    if delta < max(SMALLEST_DELTA, ROUNDING * releases):
        return bound
    if not is_gaussian(dict(history)):
        return bound

    accountant = _make_prv_accountant()
    accountant.history = [(event.noise, event.rate, steps) for event, steps in history]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # logarithms of 0 at q = 1, which are harmless
        try:
            exact = float(accountant.get_epsilon(delta=delta, eps_error=max(ERROR, RELATIVE_ERROR * bound)))
        except (RuntimeError, ValueError, ArithmeticError):  # out of reach: the looser bound is still a bound
            return bound
    return min(exact, bound)


def is_within(events: Events, delta: float, budget: float) -> bool:
    """Return whether epsilon is at most `budget`."""
    return rdp_epsilon(events, delta) <= budget or epsilon(events, delta) <= budget


def noise_for(budget: float, delta: float, rate: float, steps: int, before: Events = MappingProxyType({})) -> float:
    """Return the smallest noise multiplier, to 0.5 %, that keeps all releases within a budget.

    Args:
        budget: epsilon of all releases together, above 0.
        delta: the delta that epsilon is stated at, above 0, below 1.
        rate: sampling rate of the releases whose noise is computed, above 0, at most 1.
        steps: number of these releases.
        before: further releases that count toward the budget.

    Raises:
        PrivacyError: no noise multiplier up to a million is enough.
    """

    def all_with(noise: float) -> Events:
        return merge_events(before, {Event(noise, rate): steps})

    def smallest(enough: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
        while high - low > 5e-3 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return low, high

    def loosely(noise: float) -> bool:
        return rdp_epsilon(all_with(noise), delta) <= budget

    def exactly(noise: float) -> bool:
        return is_within(all_with(noise), delta, budget)

    # RDP's bound of the earlier releases alone may exceed the budget; then no noise would ever be enough.
    enough = exactly if before else loosely
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
    low = 0.8 * loose  # the exact answer is even lower if RDP is at its loosest
    while low > 1e-2 and exactly(low):
        low, loose = 0.8 * low, low
    return smallest(exactly, low, loose)[1]


def merge_events(*parts: Events) -> dict[Event, int]:
    """Merge the releases of several accounts into one."""
    found: dict[Event, int] = {}
    for part in parts:
        for event, steps in part.items():
            found[event] = found.get(event, 0) + steps
    return found

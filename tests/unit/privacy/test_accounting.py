"""Epsilon against an independent accountant and published numbers; the noise that a budget needs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from opacus.accountants import RDPAccountant
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent
from scipy.optimize import brentq
from scipy.special import log_ndtr

from fedpeft.privacy.accountant import Event, _make_prv_accountant, epsilon, is_within, noise_for, rdp_epsilon
from fedpeft.privacy.engine import worst_and_median
from tests.refusals import refuses

GOLDEN = json.loads((Path(__file__).parent.parent.parent / "golden" / "epsilon_pld.json").read_text())


@pytest.mark.parametrize(("noise", "rate", "count", "delta", "pessimistic", "optimistic"), GOLDEN["grid"])
def test_epsilon_is_that_of_privacy_loss_distributions(noise, rate, count, delta, pessimistic, optimistic):
    found = epsilon({Event(noise, rate): count}, delta)
    assert abs(found - pessimistic) <= max(0.01 * pessimistic, 0.02)
    assert found >= optimistic


def test_unlike_releases_compose():
    events = {Event(1.0, 0.1): 100, Event(2.0, 0.05): 50, Event(3.0, 1.0): 2}
    expected = GOLDEN["mixed"]["epsilon"]
    assert abs(epsilon(events, GOLDEN["mixed"]["delta"]) - expected) <= max(0.01 * expected, 0.02)


def test_published_values():
    """For z = 1, 10 of 100 clients, 100 rounds, delta 1e-3: 4.78 with Poisson sampling, 80 without amplification."""
    assert epsilon({Event(1.0, 0.1): 100}, 1e-3) == pytest.approx(4.78, abs=0.03)
    assert epsilon({Event(1.0, 1.0): 100}, 1e-3) == pytest.approx(80.0, rel=0.01)


def test_one_gaussian_release_has_the_closed_form():
    """delta(eps) = Phi(1 / (2 z) - eps z) - e^eps Phi(-1 / (2 z) - eps z) (Balle and Wang, arXiv 1805.06530)."""

    def phi(x):
        return 0.5 * math.erfc(-x / math.sqrt(2))

    for z, count in ((1.0, 1), (4.0, 10), (2.0, 9)):
        mu = math.sqrt(count) / z
        found = epsilon({Event(z, 1.0): count}, 1e-4)
        reached = phi(mu / 2 - found / mu) - math.exp(found) * phi(-mu / 2 - found / mu)
        assert 0.9e-4 <= reached <= 1e-4


def exact_epsilon(mu, delta):
    """Epsilon of Gaussian releases without sampling, from logarithms: no difference of numbers near 1 is rounded."""

    def excess(epsilon):
        one, other = log_ndtr(mu / 2 - epsilon / mu), epsilon + log_ndtr(-mu / 2 - epsilon / mu)
        return one + math.log1p(-math.exp(other - one)) - math.log(delta)

    return brentq(excess, 1e-6, 3000)


@pytest.mark.parametrize("delta", [1e-14, 1e-12, 3e-12, 1e-11, 1e-10, 1e-9])
@pytest.mark.parametrize(("mu", "count"), [(0.3, 20_000), (3.0, 20_000), (3.0, 200_000), (10.0, 200_000)])
def test_epsilon_is_never_below_the_exact_one_however_small_delta_is(mu, count, delta):
    """PRV's transforms round: at delta 1e-12, mu 3 and 20,000 releases it gave 24.84 for 25.09."""
    exact = exact_epsilon(mu, delta)
    assert exact <= epsilon({Event(math.sqrt(count) / mu, 1.0): count}, delta) <= 1.1 * exact


def test_usual_deltas_are_still_accounted_for_by_prv():
    events = {Event(math.sqrt(20_000) / 3, 1.0): 20_000}
    assert epsilon(events, 1e-9) < 1.01 * exact_epsilon(3.0, 1e-9) < rdp_epsilon(events, 1e-9)
    assert epsilon(events, 1e-12) == rdp_epsilon(events, 1e-12)


@pytest.mark.parametrize(
    ("events", "delta"),
    [
        ({Event(0.5, 0.01): 100}, 1e-5),  # the best order is 2.2 or so
        ({Event(1.0, 0.1): 100}, 1e-3),
        ({Event(3.0, 1.0): 40}, 1e-5),
        ({Event(9.0, 0.3): 10, Event(2.0, 0.02): 200}, 1e-7),
        ({Event(50.0, 0.001): 5}, 1e-5),  # the largest
    ],
)
def test_the_bound_by_few_orders_is_that_by_all(events, delta):
    orders = RDPAccountant.DEFAULT_ALPHAS
    total = sum(
        compute_rdp(q=event.rate, noise_multiplier=event.noise, steps=1, orders=orders) * steps
        for event, steps in events.items()
    )
    assert rdp_epsilon(events, delta) == get_privacy_spent(orders=orders, rdp=np.asarray(total), delta=delta)[0]


def test_edges():
    assert epsilon({}, 1e-3) == 0
    assert epsilon({Event(1.0, 0.1): 0}, 1e-3) == 0
    assert epsilon({Event(0.0, 0.1): 1}, 1e-3) == math.inf
    assert rdp_epsilon({Event(1.0, 0.1): 100}, 1e-3) > epsilon({Event(1.0, 0.1): 100}, 1e-3)


@pytest.mark.parametrize(
    ("budget", "rate", "steps"), [pytest.param(2.0, 0.5, 4, marks=pytest.mark.slow), (1.0, 1.0, 5)]
)
def test_the_noise_for_a_budget_just_meets_it(budget, rate, steps):
    noise = noise_for(budget, 1e-4, rate, steps)
    assert is_within({Event(noise, rate): steps}, 1e-4, budget)
    assert not is_within({Event(0.99 * noise, rate): steps}, 1e-4, budget)


def test_a_budget_that_no_noise_meets_is_one_sentence():
    with refuses("FP7028"):
        noise_for(1e-9, 1e-9, 1.0, 10**9)


@pytest.mark.parametrize("event", [Event(1e300, 0.5), Event(1e-300, 0.5)])
def test_numbers_beyond_floats_have_no_finite_epsilon(event):
    assert rdp_epsilon({event: 1}, 1e-5) == epsilon({event: 1}, 1e-5) == float("inf")
    assert not is_within({event: 1}, 1e-5, 1000)


def test_more_releases_than_can_be_composed_are_bounded_by_rdp():
    many = {Event(10.0, 1e-3): 2 * 10**6}
    assert epsilon(many, 1e-5) == rdp_epsilon(many, 1e-5) < 1000


def test_a_release_that_hardly_costs_anything_is_bounded_by_the_largest_order():
    """The conversion at order a is D_a + log(1 - 1 / a) - log(delta a) / (a - 1) (Canonne et al., arXiv 2004.00010)."""
    order, delta = 1024, 1e-5
    expected = order / (2 * 1e4**2) + math.log(1 - 1 / order) - math.log(delta * order) / (order - 1)
    assert rdp_epsilon({Event(1e4, 1.0, rounding=1e-30): 1}, delta) == pytest.approx(expected, rel=1e-9)


def test_the_worst_account_is_the_one_of_the_largest_epsilon():
    """Not the one of the largest bound by RDP, which is far too large where rows hardly ever join."""
    seldom, once, delta = {Event(0.5, 1e-4): 10}, {Event(3.0, 1.0): 1}, 1e-5
    assert rdp_epsilon(once, delta) < 0.8 * rdp_epsilon(seldom, delta)
    assert epsilon(once, delta) > 10 * epsilon(seldom, delta)
    assert worst_and_median([(seldom, delta), (once, delta), ({}, delta)])[0] == epsilon(once, delta)


@pytest.mark.parametrize(
    ("history", "delta"),
    [
        ([(1.2, 0.05, 400)], 1e-5),
        ([(3.0, 1.0, 20)], 1e-4),
        ([(2.5, 1.0, 1), (1.7, 0.1, 40)], 3e-5),
        ([(0.9, 0.004, 1000), (20.0, 0.3, 7), (4.0, 1.0, 2)], 1e-6),
        ([(3.0, 1.0, 20), (3.0, 1.0, 20)], 1e-4),  # one kind of release, told twice
        ([(1.0, 1.0, 1)], 1e-5),  # whose tail reaches farther than all together
    ],
)
def test_a_domain_that_is_found_faster_is_opacus_own(history, delta):
    from opacus.accountants import PRVAccountant

    found = []
    for accountant in (_make_prv_accountant(), PRVAccountant()):
        accountant.history = history
        found.append(accountant.get_epsilon(delta=delta))
    assert found[0] == found[1] > 0

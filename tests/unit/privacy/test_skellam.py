"""Skellam noise on a grid: its bounds against divergences computed by themselves, its draws, its grids."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ive, logsumexp

from fedpeft.errors import PrivacyError
from fedpeft.privacy.accountant import Event, epsilon, rdp_epsilon
from fedpeft.privacy.sampled_rdp import WHOLE_ORDERS, rdp_of_sampled
from fedpeft.privacy.secure_sum.masks import dtype
from fedpeft.privacy.secure_sum.shared_noise import SharedNoise
from fedpeft.privacy.skellam import SPREAD, Grid, draw_skellam, widest_grid
from tests.refusals import refuses

ORDERS = (2, 3, 5, 9, 17, 33)


def divergence(order: int, square: float, total: float, variance: float) -> float:
    """Theorem 3.5 of the paper: D_a between noise and noise that is shifted by W, |W|^2 and |W|_1, is no more."""
    second = ((2 * order - 1) * square + 6 * total) / (4 * variance**2)
    return order * square / (2 * variance) + min(second, 3 * total / (2 * variance))


def log_skellam(variance: float) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers far into the tails, and the logarithms of Skellam's probabilities, from Bessel functions."""
    reach = int(40 * math.sqrt(variance) + 60)
    x = np.arange(-reach, reach + 1)
    with mpmath.workdps(40):
        logs = np.array([float(mpmath.log(mpmath.besseli(int(k), variance)) - variance) for k in range(reach + 1)])
    return x, logs[np.abs(x)]


def exact(order: int, p: np.ndarray, q: np.ndarray) -> float:
    """D_a(P, Q) of logarithms of probabilities."""
    return float(logsumexp(order * p + (1 - order) * q)) / (order - 1)


def shifted(logs: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the shifted and the plain values on their common support."""
    return (logs[: len(logs) - shift], logs[shift:]) if shift else (logs, logs)


# ---------------------------------------------------------------------------------------------------------- the bounds


@pytest.mark.parametrize("variance", [0.5, 2.0, 10.0, 60.0])
def test_the_probabilities_that_bounds_are_tested_with_are_scipy_s(variance):
    x, logs = log_skellam(variance)
    inside = np.abs(x) < 8 * math.sqrt(variance) + 8
    np.testing.assert_allclose(
        np.exp(logs[inside]), stats.skellam.pmf(x[inside], variance / 2, variance / 2), rtol=1e-6, atol=1e-15
    )
    np.testing.assert_allclose(np.exp(logs[len(x) // 2]), ive(0, variance), rtol=1e-10)


@pytest.mark.parametrize("variance", [0.5, 2.0, 10.0, 60.0])
@pytest.mark.parametrize("shift", [1, 2, 5])
def test_the_paper_s_bound_is_one(variance, shift):
    _, logs = log_skellam(variance)
    p, q = shifted(logs, shift)
    for order in ORDERS:
        found = exact(order, p, q)
        assert found <= divergence(order, shift**2, shift, variance) * (1 + 1e-9)
        if variance >= 60 and order <= 3:  # and no loose one
            assert found > 0.8 * divergence(order, shift**2, shift, variance)


def rounded(entries: tuple[float, ...]):
    """All integers that entries may be rounded to, with their probabilities."""
    ends = [[(math.floor(x), 1 - x % 1), (math.floor(x) + 1, x % 1)] for x in entries]
    for chosen in itertools.product(*ends):
        yield [w for w, _ in chosen], math.prod(p for _, p in chosen)


@pytest.mark.parametrize(
    "entries", [(1.0, 0.0), (0.5, 0.5, 0.5), (2.7, -1.4), (0.3,) * 6, (3.2, 0.1, -0.6, 1.5), (9.5, 0.25)]
)
@pytest.mark.parametrize("variance", [3.0, 40.0, 900.0])
def test_rounding_and_noise_together_cost_no_more_than_the_event(entries, variance):
    """The mean of exp((a - 1) D_a) over all roundings, each with the paper's bound of its own shift."""
    grid = Grid(len(entries), 1.0, float(np.linalg.norm(entries)), variance)
    event = grid.event(1.0)
    bounds = dict(zip(WHOLE_ORDERS, rdp_of_sampled(*event), strict=True))
    for order in (a for a in ORDERS if a in bounds):
        terms = [
            math.log(p) + (order - 1) * divergence(order, sum(w * w for w in ws), sum(map(abs, ws)), variance)
            for ws, p in rounded(entries)
            if p
        ]
        assert logsumexp(terms) / (order - 1) <= bounds[order] * (1 + 1e-12)


@pytest.mark.parametrize(
    ("x", "change"), [((0.3, -1.2), (0.8, 0.4)), ((5.5, 0.25), (-0.9, 1.1)), ((0.0, 0.0), (1.5, 0.0))]
)
def test_a_sum_and_its_neighbour_after_rounding_are_as_far_apart_as_is_charged(x, change):
    """The release itself, by brute force: the sum x and x + change, rounded with secret thresholds, and noised."""
    variance, reach = 6.0, 40
    _, logs = log_skellam(variance)
    middle = len(logs) // 2
    window = np.arange(-reach, reach + 1)

    def release(entries):
        by_entry = []
        for entry in entries:
            low, part = math.floor(entry), entry % 1
            ends = [logs[middle + window - low] + (math.log1p(-part)), logs[middle + window - low - 1]]
            by_entry.append(np.logaddexp(ends[0], ends[1] + math.log(part)) if part else ends[0])
        return np.add.outer(*by_entry).ravel()

    p, q = release(np.add(x, change)), release(x)
    bounds = dict(
        zip(
            WHOLE_ORDERS, rdp_of_sampled(*Grid(2, 1.0, float(np.linalg.norm(change)), variance).event(1.0)), strict=True
        )
    )
    for order in (2, 3, 5, 9):
        assert 0 < exact(order, p, q) <= bounds[order]
        assert 0 < exact(order, q, p) <= bounds[order]


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.7])
@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize(("variance", "shift"), [(4.0, 1), (25.0, 3)])
def test_sampling_amplifies_as_the_bound_says_in_both_directions(rate, share, variance, shift):
    """Against mixtures computed by themselves; who knows whether the client takes part sees two regions far apart."""
    _, logs = log_skellam(variance)
    p, q = shifted(logs, shift)
    mixed = np.logaddexp(math.log(rate) + p, math.log1p(-rate) + q)
    event = Grid(1, 1.0, float(shift), variance).event(rate, share)
    bounds = dict(zip(WHOLE_ORDERS, rdp_of_sampled(*event), strict=True))
    elsewhere = [math.log1p(-share)] if share < 1 else []
    one, other = ([*(math.log(share) + v), *elsewhere] for v in (mixed, q))
    for order in ORDERS:
        if order in bounds:
            for a, b in ((one, other), (other, one)):
                assert exact(order, np.array(a), np.array(b)) <= bounds[order] * (1 + 1e-9)


def test_the_formula_is_the_gaussian_s_where_its_divergences_are():
    """Opacus' own, at the whole orders that both have."""
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = list(WHOLE_ORDERS[:60])
    for noise, rate in ((1.0, 0.01), (4.0, 0.3), (0.7, 1.0)):
        found = rdp_of_sampled(noise, rate, 0.0, 1.0)[: len(orders)]
        np.testing.assert_allclose(
            found, compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=orders), rtol=1e-6
        )


@pytest.mark.medium
@settings(max_examples=60, deadline=None)
@given(st.floats(0.3, 30), st.floats(1e-3, 1), st.floats(1e-3, 1), st.floats(0, 0.9), st.floats(1, 2000))
def test_more_noise_lower_rates_and_fewer_colluders_cost_less(noise, rate, share, known, radius):
    grid, more = (Grid(50, 1.0, radius, (z * radius) ** 2) for z in (noise, 1.1 * noise))
    cost = rdp_of_sampled(*grid.event(rate, share, known))
    assert (rdp_of_sampled(*more.event(rate, share, known)) <= cost + 1e-12).all()
    assert (rdp_of_sampled(*grid.event(rate / 2, share, known)) <= cost + 1e-12).all()
    assert (rdp_of_sampled(*grid.event(rate, share / 2, known)) <= cost + 1e-12).all()
    assert (rdp_of_sampled(*grid.event(rate, share, known / 2)) <= cost + 1e-12).all()


def test_an_account_with_skellam_noise_is_told_by_rdp_and_never_by_prv():
    release = Grid(100, 1.0, 1000.0, 4000.0**2).event(1.0)
    gaussian = Event(4.0, 1.0)
    assert epsilon({release: 3}, 1e-5) == rdp_epsilon({release: 3}, 1e-5)
    assert epsilon({gaussian: 3}, 1e-5) < rdp_epsilon({gaussian: 3}, 1e-5) < 1.05 * rdp_epsilon({release: 3}, 1e-5)
    both = epsilon({release: 3, gaussian: 3}, 1e-5)
    assert epsilon({release: 3}, 1e-5) < both < rdp_epsilon({release: 6}, 1e-5) * 1.01
    assert epsilon({release._replace(noise=0.0): 1}, 1e-5) == math.inf


# ------------------------------------------------------------------------------------------------ grids and the modulus


@pytest.mark.parametrize("bits", [12, 16, 20])
@pytest.mark.parametrize("noise", [0.5, 4.0, 40.0])
def test_a_grid_holds_its_sum(bits, noise):
    """Its standard deviations, by hand: all noise, the rounding of all clients, and a signal that agrees."""
    clients, dropouts, size, clip, signal = 20, 2, 3000, 0.5, 40.0
    try:
        grid = widest_grid(noise, clip, bits, clients, dropouts, (size, size), signal)
    except PrivacyError:
        assert bits == 12
        return
    whole = grid.share(clients, dropouts) * clients
    deviation = math.sqrt(whole + clients / 4 + (signal / grid.step) ** 2 / 2048)
    assert SPREAD * deviation <= 2 ** (bits - 1) * (1 + 1e-9)
    assert math.sqrt(grid.variance) * grid.step == pytest.approx(noise * clip)
    assert grid.radius * grid.step == pytest.approx(clip)
    assert grid.growth <= 1.5


def test_a_modulus_too_small_says_how_many_bits_are_not():
    with refuses("FP7084", "give bits=") as found:
        widest_grid(4.0, 1.0, 8, 20, 2, (80_000, 80_000), 5000.0)
    bits = int(str(found.value).partition("bits=")[2].split()[0])
    widest_grid(4.0, 1.0, bits, 20, 2, (80_000, 80_000), 5000.0)
    with pytest.raises(PrivacyError):
        widest_grid(4.0, 1.0, bits - 1, 20, 2, (80_000, 80_000), 5000.0)


# --------------------------------------------------------------------------------------------------------------- draws


def chi_square(drawn: np.ndarray, variance: float) -> float:
    """Return the p-value of numbers under Skellam's distribution, with rare numbers pooled."""
    reach = int(3.5 * math.sqrt(variance))
    x = np.arange(-reach, reach + 1)
    expected = stats.skellam.pmf(x, variance / 2, variance / 2) * len(drawn)
    counts = np.array([(drawn == k).sum() for k in x])
    expected = np.append(expected, len(drawn) - expected.sum())
    return float(stats.chisquare(np.append(counts, len(drawn) - counts.sum()), expected).pvalue)


def noisy(clients: int, dropouts: float, variance: float, size: int) -> tuple[SharedNoise, Grid]:
    grid = Grid(size, 1.0, 5.0, variance)
    return SharedNoise(mechanism="distributed_dp", clip=5.0, dropouts=dropouts, rows=True, later=grid), grid


@pytest.mark.parametrize("dropped", [0, 1, 2])
def test_shares_add_up_to_skellam_noise_of_what_is_left(dropped):
    """The summed integers of clients that have nothing to say, with dropouts: all that is there is noise."""
    clients, size = 10, 40_000
    sums, grid = noisy(clients, 0.2, 12.0, size)
    integers = sums.integers(clients, 16, size, 1, 5.0, 1)
    signs, zero = np.ones((2, size)), np.zeros(size)
    parts = [integers.encode(zero, np.ones(1), signs, np.random.default_rng(k)) for k in range(clients - dropped)]
    total = sum(part.astype(np.int64) for part in parts) % 2**16
    noise = (total[:size] + 2**15) % 2**16 - 2**15
    left = grid.variance * (clients - dropped) / 8
    assert left >= grid.variance
    assert chi_square(noise, left) > 1e-4
    assert chi_square(noise, left * 1.1) < 1e-6  # a tenth more, or less, would be seen
    assert chi_square(noise, left * 0.9) < 1e-6


def test_large_variances_are_drawn_in_pieces_that_add_up():
    drawn = draw_skellam(np.random.default_rng(0), 2.0**33, 50_000)
    assert drawn.std() == pytest.approx(2.0**16.5, rel=0.02)
    assert abs(drawn.mean()) < 5 * 2.0**16.5 / 50_000**0.5
    assert len(np.unique(drawn % 2)) == 2


def test_a_noisy_sum_is_the_sum_and_wraps_hardly_anywhere():
    clients, size, clip = 20, 4096, 1.0
    grid = widest_grid(3.0, clip, 16, clients, 2, (size, size), clients * clip)
    sums = SharedNoise(mechanism="distributed_dp", clip=clip, dropouts=0.1, later=grid)
    integers = sums.integers(clients, 16, size, 2, clip, 1)
    draws = np.random.default_rng(1)
    signs = draws.integers(0, 2, (2, size)) * 2.0 - 1
    vectors = draws.normal(size=(clients, size))
    vectors *= clip / np.linalg.norm(vectors, axis=1, keepdims=True)
    total = sum(integers.encode(v, np.ones(2), signs, draws).astype(np.int64) for v in vectors) % 2**16
    found, numbers = integers.decode(total.astype(dtype(16)), clients, signs)
    error = (found - vectors.sum(0)).std()
    assert error == pytest.approx(3.0 * clip * math.sqrt(20 / 18), rel=0.05)
    np.testing.assert_allclose(numbers, clients, atol=1e-3)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 1e300])
def test_what_is_not_finite_is_hidden_like_anything_else(wrong):
    """It counts as zero, or is clipped: an error instead would tell that it is there."""
    sums, _ = noisy(3, 0.0, 12.0, 4)
    for rows in (True, False):
        integers = SharedNoise(**{**vars(sums), "rows": rows}).integers(3, 16, 4, 1, 5.0, 1)
        made = integers.encode(np.array([wrong, 0, 0, 0]), np.ones(1), np.ones((2, 4)), np.random.default_rng(0))
        assert len(made) == integers.length


def test_an_update_is_clipped_and_a_sum_of_clipped_gradients_is_not():
    sums, _ = noisy(3, 0.0, 1e-9, 64)
    vector, signs = np.full(64, 10.0), np.ones((2, 64))
    for rows, length in ((True, 80.0), (False, 5.0)):
        integers = SharedNoise(**{**vars(sums), "rows": rows}).integers(3, 16, 64, 1, 5.0, 1)
        made = integers.encode(vector, np.ones(1), signs, np.random.default_rng(0))
        found, _ = integers.decode(made, 1, signs)
        assert np.linalg.norm(found) == pytest.approx(length, abs=5)

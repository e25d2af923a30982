"""Updates as integers for secure sums: rotated, rounded, never wrapping; and a member's notes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedpeft.errors import PayloadError
from fedpeft.parts.families import SUMS
from fedpeft.privacy.secure_sum.announcement import Announcement, signs
from fedpeft.privacy.secure_sum.contribution import BESIDE, Contribution, Total, Weights
from fedpeft.privacy.secure_sum.identities import simulated_key, simulated_roster
from fedpeft.privacy.secure_sum.integers import Integers, check_fits, rotate, rotate_back
from fedpeft.privacy.secure_sum.masks import dtype
from fedpeft.privacy.secure_sum.member import Member
from fedpeft.privacy.secure_sum.neighbours import Terms
from tests.refusals import refuses


def added(integers: Integers, vectors, numbers, turns):
    draws = np.random.default_rng(0)
    return sum(
        integers.encode(v, x, turns, draws).astype(np.int64) for v, x in zip(vectors, numbers, strict=True)
    ).__mod__(2**integers.bits).astype(dtype(integers.bits))  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 64, 65, 1000])
def test_the_rotation_is_orthonormal_and_spreads_one_entry_over_all(size):
    turns, vector = signs(1, 2, size), np.zeros(size)
    vector[size // 3] = 5.0
    turned = rotate(vector, turns)
    np.testing.assert_allclose(np.linalg.norm(turned), 5.0)
    np.testing.assert_allclose(rotate_back(turned, turns), vector, atol=1e-12)
    assert abs(turned).max() < 4 * 5 / 2 ** ((size.bit_length() - 1) / 2)


@pytest.mark.parametrize(("clients", "bits"), [(3, 16), (100, 16), (100, 12), (7, 32)])
def test_a_sum_is_within_the_steps_of_its_grid(clients, bits):
    size, draws, turns = 777, np.random.default_rng(1), signs(1, 1, 777)
    integers = Integers(clients, bits, size, 3, clip=2.0)
    vectors = draws.normal(size=(clients, size))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    numbers = draws.normal(size=(clients, 3)) * 1e4
    vector, found = integers.decode(added(integers, vectors, numbers, turns), clients, turns)
    # rounding has at most the variance step^2 / 4 in each entry of each client
    assert np.linalg.norm(vector - vectors.sum(0)) < 1.2 * integers.step / 2 * (clients * size) ** 0.5
    np.testing.assert_allclose(found, numbers.sum(0), atol=clients * 2.0**-21)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 100.0, 1e6])
def test_large_values_are_summed_as_exactly_as_small_ones(scale):
    """No fixed range clips them: the grid is as wide as the clipping norm."""
    one = np.array([0.5, 1.0, 2.0, 4.0, -16.0]) * scale
    integers, turns = Integers(3, 24, one.size, 1, clip=float(np.linalg.norm(3 * one))), signs(1, 1, one.size)
    total = added(integers, [one, 2 * one, 3 * one], np.ones((3, 1)), turns)
    vector, _ = integers.decode(total, 3, turns)
    np.testing.assert_allclose(vector, 6 * one, atol=1e-3 * scale, rtol=0)


@pytest.mark.medium
def test_rounding_is_unbiased():
    integers, turns, size = Integers(3, 8, 40, 1, clip=1.0), signs(1, 1, 40), 40
    vector = np.random.default_rng(2).normal(size=size) / 10
    draws, total, times = np.random.default_rng(3), np.zeros(size), 4000
    for _ in range(times):
        total += integers.decode(integers.encode(vector, np.ones(1), turns, draws), 1, turns)[0]
    assert np.linalg.norm(total / times - vector) < 1.5 * integers.step / 2 * (size / times) ** 0.5


@pytest.mark.parametrize(("clients", "bits"), [(3, 6), (15, 8), (255, 12), (4095, 16)])
def test_no_sum_wraps_even_if_all_clients_are_at_the_same_end(clients, bits):
    check_fits(clients, bits)
    integers = Integers(clients, bits, 1, 2, clip=1e-6)
    one = np.array([1e9])
    for sign in (1, -1):
        ends = added(integers, [sign * one] * clients, [sign * np.array([1e30, 1.0])] * clients, np.ones((2, 1)))
        vector, numbers = integers.decode(ends, clients, np.ones((2, 1)))
        assert 0 < sign * vector[0] <= clients * integers.levels * integers.step
        np.testing.assert_allclose(numbers, [sign * clients * 2.0**27, sign * clients], rtol=1e-6)


@pytest.mark.parametrize(("clients", "bits"), [(3, 6), (15, 8), (255, 12), (4095, 16)])
def test_entries_at_the_end_of_the_grid_do_not_wrap(clients, bits):
    """All clients have their whole length in one rotated entry, which the grid cuts to its end."""
    integers, turns = Integers(clients, bits, 1024, 1, clip=1.0), signs(1, 1, 1024)
    spike = np.zeros(1024)
    spike[7] = 1.0
    for sign in (1, -1):
        whole = integers.whole(rotate_back(sign * spike, turns), turns, np.random.default_rng(0))
        assert whole[7] == sign * integers.levels
        assert abs(clients * int(whole[7])) < 2 ** (bits - 1)


def test_a_norm_above_the_clip_is_cut_to_it():
    integers, turns = Integers(3, 32, 64, 1, clip=2.0), signs(1, 1, 64)
    vector, _ = integers.decode(
        integers.encode(np.full(64, 1.0), np.ones(1), turns, np.random.default_rng(0)), 1, turns
    )
    np.testing.assert_allclose(vector, np.full(64, 0.25), atol=1e-4)


@pytest.mark.parametrize(("vector", "number"), [([np.nan, 0.0], 1.0), ([np.inf, 0.0], 1.0), ([0.0, 0.0], np.nan)])
def test_what_is_not_finite_is_no_contribution(vector, number):
    integers = Integers(3, 16, 2, 1, clip=1.0)
    with refuses("FP6118"):
        integers.encode(np.array(vector), np.array([number]), np.ones((2, 2)), np.random.default_rng(0))


def test_a_modulus_too_small_says_which_is_not():
    with refuses("FP7078", "11") as found:
        check_fits(100, 8)
    check_fits(100, int(str(found.value).partition("bits=")[2].split()[0]))


def test_a_total_is_the_weighted_mean():
    secure, told = SUMS.build("secure_sum(bits=32)"), Announcement(bytes(16), 3, 6, BESIDE, 1000.0)
    given = [
        Contribution(w, int(w), loss, {"b": torch.tensor([x, -x]), "a": torch.full((2, 2), x)})
        for w, loss, x in ((10.0, 1.0, 0.5), (30.0, 2.0, 1.5), (20.0, 0.25, -1.0))
    ]
    integers = [c.integers(told, secure, 5, 1, k) for k, c in enumerate(given)]
    total = Total.of(sum(integers), 3, told, secure, 5, 1)
    assert (total.weight, total.rows) == (60, 60)
    assert total.loss == pytest.approx((10 + 60 + 5) / 60)
    mean = (5 + 45 - 20) / 60
    found = total.update({"b": (2,), "a": (2, 2)}, torch.float32)
    assert list(found) == ["b", "a"]
    torch.testing.assert_close(found["b"], torch.tensor([mean, -mean]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found["a"], torch.full((2, 2), mean), atol=1e-5, rtol=0)
    norms = [w * (6**0.5) * abs(x) for w, x in ((10, 0.5), (30, 1.5), (20, 1.0))]
    assert total.next_clip(told, secure, 0.5) == pytest.approx(4 * sum(norms) / 3 / 2, rel=1e-4)


def test_a_contribution_of_another_size_than_announced_is_not_sent():
    secure, told = SUMS.build("secure_sum"), Announcement(bytes(16), 3, 6, BESIDE, 1.0)
    with refuses("FP6111", "6", "4", "5", "4"):
        Contribution(1.0, 1, update={"a": torch.zeros(5)}).integers(told, secure, 1, 1, 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"clients": 2}, ("FP6104", "3")), ({"clip": 0.0}, ("FP6104",)), ({"clip": float("inf")}, ("FP6104",))],
)
def test_announcements_are_checked(change, says):
    good = Announcement(bytes(16), 3, 6, BESIDE, 1.0)
    assert Announcement.of_bytes(good.to_bytes()) == good
    with refuses(*says):
        Announcement.of_bytes(Announcement(**vars(good) | change).to_bytes())
    with refuses("FP6103"):
        Announcement.of_bytes(good.to_bytes() + b"x")


def test_a_member_goes_on_from_its_notes_and_from_no_others():
    terms = Terms(2, 0.5, 16, 5, b"one")
    member = Member(1, terms, simulated_key(0, 1), simulated_roster(0, 3))
    member.keys()
    notes = member.to_bytes()
    again = Member(1, terms, member.key, member.roster).restore(notes)
    assert (again.steps, again._seed, again._mask, again._share) == (1, member._seed, member._mask, member._share)
    for content, client, other in ((notes, 2, terms), (notes, 1, Terms(2, 0.5, 16, 5, b"two"))):
        with refuses("FP6131"):
            Member(client, other, member.key, member.roster).restore(content)
    for damaged in (notes[:-1], notes + b"x"):
        with pytest.raises(PayloadError):
            Member(1, terms, member.key, member.roster).restore(damaged)


LIES = {
    "huge": lambda _low, _high: 1e15,
    "minus huge": lambda _low, _high: -1e15,
    "zero": lambda _low, _high: 0.0,
    "the least that the sum confirms": lambda low, _high: low,
    "the most that the sum confirms": lambda _low, high: high,
}


@pytest.mark.parametrize("clients", [3, 5, 10, 30, 100])
@pytest.mark.parametrize("common", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("lie", LIES)
def test_whatever_one_client_states_the_clip_stays_near_the_others_norms(clients, common, lie):
    """Updates of norm 1 with a common part; the liar knows the sum, and states in 60 rounds what moves C most.

    An update keeps a quarter of its length at least, and C stays below 32 times what an honest run has: 4.
    """
    random, secure, clip = np.random.default_rng(clients), SUMS.build("secure_sum"), 4.0
    for _ in range(60):
        shared = random.normal(size=2000) * common**0.5
        updates = shared + random.normal(size=(clients - 1, 2000)) * (1 - common) ** 0.5
        updates /= np.linalg.norm(updates, axis=1, keepdims=True)
        vector = updates.sum(0) * min(1.0, clip)
        length = float(np.linalg.norm(vector)) / clip
        norm = clients * LIES[lie](length / clients, 2 * length / clients**0.5)
        told = Announcement(bytes(16), clients, 2000, BESIDE, clip)
        total = Total(clients, clients, clients, 1.0, norm, vector, np.zeros(0))
        after = total.next_clip(told, secure, 1.0)
        assert after <= 8 * clip
        clip = after
        assert 0.25 < clip < 128


@pytest.mark.parametrize("clients", [3, 5, 10])
@pytest.mark.parametrize("common", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("trend", [0.9, 1.0])
def test_the_clip_of_honest_clients_is_the_headroom_times_their_mean_norm(clients, common, trend):
    random, secure, clip, length = np.random.default_rng(clients), SUMS.build("secure_sum"), 4.0, 1.0
    for _ in range(30):
        updates = random.normal(size=2000) * common**0.5 + random.normal(size=(clients, 2000)) * (1 - common) ** 0.5
        updates *= length / np.linalg.norm(updates, axis=1, keepdims=True)
        told = Announcement(bytes(16), clients, 2000, BESIDE, clip)
        total = Total(clients, clients, clients, 1.0, clients * length / clip, updates.sum(0), np.zeros(0))
        clip, length = total.next_clip(told, secure, 1.0), length * trend
        assert clip == pytest.approx(4 * length / trend, rel=1e-9)


def test_a_sum_of_nothing_halves_the_clip():
    told = Announcement(bytes(16), 5, 6, BESIDE, 8.0)
    for norm in (0.0, 1e15, -1e15):
        total = Total(5, 5, 5, 1.0, norm, np.zeros(6), np.zeros(0))
        assert total.next_clip(told, SUMS.build("secure_sum"), 1.0) == 4.0


@pytest.mark.parametrize(
    ("weight", "clients", "start", "believed"),
    [(2.0**27, 5, (315, 5), 315), (-50, 5, (315, 5), 315), (0, 5, (315, 5), 315), (300, 5, (315, 5), 300),
     (150, 4, (315, 5), 150), (400, 4, (315, 5), 252), (-1, 4, (315, 5), 252), (315, 5, None, 315)],
)  # fmt: skip
def test_weights_that_nobody_has_are_replaced(weight, clients, start, believed):
    total = Total(clients, weight, weight, 0.5, 1.0, np.zeros(6), np.zeros(0))
    assert total.discard_impossible(Weights.of(clients, True, 1000, start)).weight == believed
    assert total.discard_impossible(Weights.of(clients, False, 1000, start)).weight == clients


@pytest.mark.parametrize("rows", [1e9, 0, -315, 314])
def test_numbers_of_examples_that_nobody_has_cost_the_mean_loss_alone(rows):
    checked = Total(5, 315, rows, 0.5, 1.0, np.zeros(6), np.zeros(0)).discard_impossible(
        Weights.of(5, True, 1000, (315, 5))
    )
    assert (checked.weight, checked.rows, checked.loss != checked.loss) == (315, 315, True)


@pytest.mark.parametrize(("weight", "most_rows"), [(0.0, math.inf), (-3.0, math.inf), (5001.0, 1000)])
def test_before_round_1_an_impossible_sum_is_refused(weight, most_rows):
    with refuses("FP6182", f"{weight:g}"):
        Total(5, weight, 10, 0.5, 1.0, np.zeros(6), np.zeros(0)).discard_impossible(
            Weights.of(5, True, most_rows, None)
        )

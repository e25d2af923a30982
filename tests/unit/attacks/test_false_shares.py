"""Members that give, or deal, false shares: the sum is formed as long as enough right shares can be told from them."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.privacy.secure_sum import shamir, words
from fedpeft.privacy.secure_sum.coordinator import VoidError
from tests.refusals import pattern_of
from tests.unit.privacy.test_secure_sum import Sum, drawer


def summed(liars, change, **given):
    """Run a sum in which these members change the shares that they give in step 5."""
    secure = Sum(**given)
    taken = secure.coordinator.take_shares

    def lying(client, content):
        shares = words.read_shares(content)
        if client in liars:
            shares = {peer: (which, change(client, peer, share)) for peer, (which, share) in shares.items()}
        taken(client, words.write_shares(shares))

    secure.coordinator.take_shares = lying
    return secure, secure.run


def added(number):
    return lambda _client, _peer, share: (
        (int.from_bytes(share, "big") + number) % shamir.PRIME
    ).to_bytes(shamir.SHARE, "big")  # fmt: skip


@pytest.mark.parametrize("pair", list(itertools.combinations(range(10), 2)), ids=str)
def test_any_two_of_ten_that_give_false_shares_void_no_sum(pair):
    """The defect: 35 of the 45 pairs did, though the sum takes seven shares and seven right ones were there."""
    liars = {3 * i + 1 for i in pair}
    secure, run = summed(liars, lambda *_: bytes(shamir.SHARE), clients=10)
    np.testing.assert_array_equal(run(), secure.expected())
    assert set(secure.coordinator.false_shares) <= liars


@pytest.mark.parametrize("change", [added(1), added(2**255), lambda c, p, s: random.Random(c * p).randbytes(33)],
                         ids=["by one", "by a constant", "random"])  # fmt: skip
def test_false_shares_of_another_shape_are_corrected_and_their_holders_named(change):
    """Shares that are all wrong by one constant lie on a polynomial of their own."""
    secure, run = summed({1, 4}, change, clients=10)
    np.testing.assert_array_equal(run(), secure.expected())
    assert set(secure.coordinator.false_shares) == {1, 4}
    assert len(secure.coordinator.false_shares[1]) > 1


def test_a_member_that_deals_false_shares_to_some_is_one_of_two_that_are_named():
    secure = Sum(clients=10)
    dealer = secure.members[13]
    real = dealer._seal
    dealer._seal = lambda peer, content: real(peer, bytes(len(content)) if peer in (1, 4) else content)
    np.testing.assert_array_equal(secure.run(), secure.expected())
    assert secure.coordinator.false_shares == {1: {13}, 4: {13}}


def test_a_dropped_client_s_mask_key_is_corrected_too():
    secure, run = summed({4, 7}, added(5), clients=12, dropping={3: [1]})
    np.testing.assert_array_equal(run(), secure.expected())
    assert set(secure.coordinator.false_shares) <= {4, 7}


def test_thirteen_false_shares_of_seventy_nine_are_corrected():
    """More subsets than can be tried: this is the decoder's."""
    liars = {3 * i + 1 for i in range(10, 23)}
    secure, run = summed(liars, added(1), clients=80)
    np.testing.assert_array_equal(run(), secure.expected())
    assert set(secure.coordinator.false_shares) <= liars


def test_too_many_false_shares_are_no_sum_and_no_wrong_one():
    _, run = summed({1, 4, 7}, added(1), clients=10)
    with pytest.raises(VoidError, match=pattern_of("FP6117")):
        run()


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 12), st.integers(0, 8), st.integers(0, 10**6))
def test_up_to_half_of_what_is_beyond_the_threshold_is_corrected(threshold, beyond, seed):
    drawn = random.Random(seed)
    holders = drawn.sample(range(50), threshold + beyond)
    secret = drawn.randbytes(32)
    shares = shamir.split(secret, holders, threshold, drawer(seed))
    false = set(drawn.sample(holders, beyond // 2))
    sent = {h: drawn.randbytes(shamir.SHARE) if h in false else share for h, share in shares.items()}
    assert shamir.correct_shares(sent, threshold) == {h: share for h, share in shares.items() if h not in false}
    right = {h: share for h, share in shares.items() if h not in false}
    assert shamir.find_false(sent, right, threshold) == false

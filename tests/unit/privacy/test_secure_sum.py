"""Sums under masks: exact whoever drops out, uniform to the coordinator, and closed to one that lies."""

from __future__ import annotations

import hashlib
import hmac
import itertools
from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.errors import PayloadError
from fedpeft.privacy.secure_sum import shamir, words
from fedpeft.privacy.secure_sum.coordinator import Coordinator, VoidError
from fedpeft.privacy.secure_sum.masks import derive_public_key, derive_seed, dtype, pack, stream, unpack
from fedpeft.privacy.secure_sum.member import Member
from fedpeft.privacy.secure_sum.neighbours import Terms, graph
from fedpeft.privacy.secure_sum.roster import Roster
from tests.refusals import pattern_of, refuses

LENGTH = 50


def drawer(seed: int) -> Callable[[int], bytes]:
    count = itertools.count()

    def draw(size: int) -> bytes:
        return hashlib.shake_256(f"{seed}/{next(count)}".encode()).digest(size)

    return draw


class Sum:
    """A sum of `clients`, of whom some drop out before a step."""

    def __init__(self, clients=6, degree=100, bits=20, threshold=0.67, dropping=None, seed=0, vectors=None):
        self.ids = [3 * i + 1 for i in range(clients)]
        self.terms = Terms(min(degree, clients - 1), threshold, bits, LENGTH, b"context")
        self.identities = {
            i: Ed25519PrivateKey.from_private_bytes(hashlib.sha256(bytes([i])).digest()) for i in self.ids
        }
        self.roster = Roster({i: key.public_key() for i, key in self.identities.items()})
        self.members = {
            i: Member(i, self.terms, self.identities[i], self.roster, draw=drawer(1000 * seed + i)) for i in self.ids
        }
        self.coordinator = Coordinator(self.terms, graph(self.ids, degree, seed, 1))
        self.dropping = {step: set(names) for step, names in (dropping or {}).items()}
        drawn = np.random.default_rng(seed)
        self.vectors = vectors or {i: drawn.integers(0, 2**bits, LENGTH).astype(dtype(bits)) for i in self.ids}

    def alive(self, step: int) -> list[int]:
        gone = set().union(*(names for at, names in self.dropping.items() if at <= step))
        return [i for i in self.ids if i not in gone]

    def run(self) -> np.ndarray:
        at = self.coordinator
        for i in self.alive(1):
            at.take_keys(i, self.members[i].keys())
        for i in self.alive(2):
            at.take_sealed(i, self.members[i].shares_for(at.peers(i)))
        self.sent = {i: self.members[i].vector(at.sealed_for(i), self.vectors[i]) for i in self.alive(3)}
        for i, content in self.sent.items():
            at.take_vector(i, content)
        for i in self.alive(4):
            at.take_witness(i, self.members[i].witness(at.write_survivors()))
        for i in self.alive(5):
            at.take_shares(i, self.members[i].unmask(at.witnesses_for(i)))
        return at.sum()

    def expected(self) -> np.ndarray:
        total = sum(self.vectors[i].astype(np.uint64) for i in self.alive(3))
        return (total % 2**self.terms.bits).astype(dtype(self.terms.bits))


@pytest.mark.parametrize("bits", [1, 8, 13, 16, 20, 32])
def test_the_sum_is_that_of_the_integers(bits):
    secure = Sum(bits=bits)
    np.testing.assert_array_equal(secure.run(), secure.expected())


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("degree", [100, 6])
def test_the_sum_is_that_of_those_who_have_sent_whenever_others_drop_out(step, degree):
    secure = Sum(clients=12, degree=degree, threshold=0.5, dropping={step: [4, 22]})
    np.testing.assert_array_equal(secure.run(), secure.expected())


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.sampled_from([1 + 3 * i for i in range(9)]), st.integers(1, 5), max_size=3), st.integers(0, 99)
)
def test_dropouts_at_any_steps_leave_the_sum_exact_or_void(when, seed):
    dropping = {step: [client for client, at in when.items() if at == step] for step in set(when.values())}
    secure = Sum(clients=9, threshold=0.5, dropping=dropping, seed=seed)
    np.testing.assert_array_equal(secure.run(), secure.expected())


@pytest.mark.parametrize(
    ("step", "words"), [(2, ("FP6133", 2, 4)), (3, ("FP6133", 2, 4)), (4, ("FP6130", 2, 4)), (5, ("FP6116", 3, 4))]
)
def test_too_many_dropouts_are_no_sum(step, words):
    secure = Sum(clients=6, dropping={step: [1, 4, 7]})
    with refuses(*words):
        secure.run()


def test_signatures_of_certificates_do_as_well():
    secure = Sum(clients=4)
    identities = {i: ec.generate_private_key(ec.SECP256R1()) for i in secure.ids}
    roster = Roster({i: key.public_key() for i, key in identities.items()})
    for i, member in secure.members.items():
        member.key, member.roster = identities[i], roster
    np.testing.assert_array_equal(secure.run(), secure.expected())


def test_what_arrives_is_uniform_and_the_same_detector_finds_plain_numbers():
    """Chi-square over the lowest nibble and the highest; equal inputs, new keys."""
    bits, seen = 16, []
    same = {3 * i + 1: np.full(LENGTH, 7, np.uint16) for i in range(6)}
    for seed in range(40):
        secure = Sum(bits=bits, seed=seed, vectors=dict(same))
        secure.run()
        seen += [unpack(content, LENGTH, bits) for content in secure.sent.values()]
    numbers = np.concatenate(seen)
    assert len({array.tobytes() for array in seen}) == len(seen)
    plain = np.concatenate([same[1]] * len(seen))
    for shift in (0, 12):
        counts = np.bincount((numbers >> shift) & 15, minlength=16)
        assert ((counts - len(numbers) / 16) ** 2 / (len(numbers) / 16)).sum() < 45  # 15 degrees of freedom: p = 1e-4
        counts = np.bincount((plain >> shift) & 15, minlength=16)
        assert ((counts - len(plain) / 16) ** 2 / (len(plain) / 16)).sum() > 1000


def test_a_vector_alone_is_masked_by_each_neighbour_and_by_itself():
    """Whoever lacks one of them has nothing: taking all others off leaves noise."""
    secure = Sum()
    secure.run()
    one, numbers = secure.members[1], unpack(secure.sent[1], LENGTH, 20)
    masks = {"own": stream(one._seed, LENGTH, 20)}
    for peer in one.sealed:
        seed = derive_seed(one._mask, one.peers[peer].mask, "mask", one.terms.context, min(1, peer), max(1, peer))
        masks[peer] = -stream(seed, LENGTH, 20) if peer > 1 else stream(seed, LENGTH, 20)
    bare = (numbers - sum(masks.values())) % 2**20
    np.testing.assert_array_equal(bare, secure.vectors[1])
    for missing in masks:
        known = (numbers - sum(mask for name, mask in masks.items() if name != missing)) % 2**20
        assert (known != secure.vectors[1]).mean() > 0.9


class TestALyingCoordinator:
    """Each lie ends the member's part before anything is told."""

    def secure(self, until: int, **settings) -> Sum:
        secure = Sum(**settings)
        at = secure.coordinator
        for i in secure.ids:
            at.take_keys(i, secure.members[i].keys())
        if until >= 2:
            for i in secure.ids:
                at.take_sealed(i, secure.members[i].shares_for(at.peers(i)))
        if until >= 3:
            for i in secure.ids:
                at.take_vector(i, secure.members[i].vector(at.sealed_for(i), secure.vectors[i]))
        if until >= 4:
            for i in secure.ids:
                at.take_witness(i, secure.members[i].witness(at.write_survivors()))
        return secure

    def test_invented_members(self):
        secure = self.secure(1)
        invented = Member(99, secure.terms, Ed25519PrivateKey.generate(), secure.roster)
        peers = words.read_peers(secure.coordinator.peers(1)) | {99: words.read_keys(invented.keys())}
        with refuses("FP6137", 99):
            secure.members[1].shares_for(words.write_peers(peers))

    def test_exchanged_keys(self):
        secure = self.secure(1)
        peers = words.read_peers(secure.coordinator.peers(1))
        own = Member(4, secure.terms, Ed25519PrivateKey.generate(), secure.roster)
        peers[4] = words.read_keys(own.keys())
        with refuses("FP6138", 4):
            secure.members[1].shares_for(words.write_peers(peers))

    def test_keys_of_another_sum(self):
        secure = self.secure(1)
        other = Sum()
        terms = Terms(5, 0.67, 20, LENGTH, b"another round")
        old = Member(4, terms, other.identities[4], other.roster)
        peers = words.read_peers(secure.coordinator.peers(1)) | {4: words.read_keys(old.keys())}
        with refuses("FP6138", 4):
            secure.members[1].shares_for(words.write_peers(peers))

    def test_all_neighbours_but_one_kept_away(self):
        secure = self.secure(1)
        peers = words.read_peers(secure.coordinator.peers(1))
        with refuses("FP6133", 1, 4):
            secure.members[1].shares_for(words.write_peers({4: peers[4]}))

    def test_one_survivor(self):
        secure = self.secure(3)
        with refuses("FP6133", 0, 4):
            secure.members[1].witness(words.write_ids([1]))

    def test_two_sets_of_survivors(self):
        """One half is told that client 1 dropped out, the other that it did not: both secrets would come out."""
        secure = self.secure(3, clients=8)
        everyone, without = words.write_ids(secure.ids), words.write_ids(secure.ids[1:])
        half = secure.ids[1:5]
        signed = {i: secure.members[i].witness(without if i in half else everyone) for i in secure.ids}
        for i in secure.ids:
            witnesses = words.write_witnesses({peer: signed[peer] for peer in secure.members[i].peers})
            with pytest.raises(PayloadError, match=r"^FP6138|^FP6129"):
                secure.members[i].unmask(witnesses)
            mine = {p: signed[p] for p in secure.members[i].peers if (p in half) == (i in half)}
            secure.members[i].steps = 4
            with refuses("FP6130", 5):
                secure.members[i].unmask(words.write_witnesses(mine))

    def test_asking_twice(self):
        secure = self.secure(4)
        member = secure.members[1]
        member.unmask(secure.coordinator.witnesses_for(1))
        with refuses("FP6132", "step 5", "step 5"):
            member.unmask(secure.coordinator.witnesses_for(1))
        with refuses("FP6132", "step 3", "step 5"):
            member.vector(secure.coordinator.sealed_for(1), secure.vectors[1])

    def test_a_seal_that_was_broken(self):
        secure = self.secure(2)
        sealed = words.read_sealed(secure.coordinator.sealed_for(1))
        sealed[4] = sealed[4][:-1] + bytes([sealed[4][-1] ^ 1])
        at = secure.coordinator
        for i in secure.ids:
            content = words.write_sealed(sealed) if i == 1 else at.sealed_for(i)
            at.take_vector(i, secure.members[i].vector(content, secure.vectors[i]))
        for i in secure.ids:
            at.take_witness(i, secure.members[i].witness(at.write_survivors()))
        with refuses("FP6136", 4):
            secure.members[1].unmask(at.witnesses_for(1))


@pytest.mark.parametrize("liars", [1, 2])
def test_false_shares_are_found_out(liars):
    secure = Sum(clients=8, threshold=0.5)
    run, at = secure.run, secure.coordinator
    taken = at.take_shares

    def lying(client: int, content: bytes) -> None:
        shares = words.read_shares(content)
        if client in secure.ids[:liars]:
            shares = {peer: (which, bytes(33)) for peer, (which, _) in shares.items()}
        taken(client, words.write_shares(shares))

    at.take_shares = lying  # type: ignore[method-assign]
    np.testing.assert_array_equal(run(), secure.expected())


def test_shares_that_lead_nowhere_are_no_sum():
    secure = Sum(clients=6)
    at, taken = secure.coordinator, secure.coordinator.take_shares
    at.take_shares = lambda client, content: taken(  # type: ignore[method-assign]
        client, words.write_shares({p: (w, bytes(33)) for p, (w, _) in words.read_shares(content).items()})
    )
    with pytest.raises(VoidError, match=pattern_of("FP6117")):
        secure.run()


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 9), st.randoms(use_true_random=False))
def test_any_threshold_of_shares_gives_the_secret_and_one_less_another(secret, threshold, random):
    holders = list(range(9))
    shares = shamir.split(secret, holders, threshold, drawer(random.randrange(10**6)))
    chosen = random.sample(holders, threshold)
    assert shamir.join({h: shares[h] for h in chosen}, threshold) == secret
    if threshold > 1:
        fewer = {h: shares[h] for h in chosen[:-1]}
        with refuses("FP6139"):
            shamir.join(fewer, threshold)


def test_a_share_alone_is_uniform():
    """Two secrets, one share of two needed: the lowest bits of the share look alike."""
    counts = []
    for secret in (bytes(32), b"\xff" * 32):
        low = [shamir.split(secret, [0, 1], 2, drawer(n))[0][-1] & 7 for n in range(2000)]
        counts.append(np.bincount(low, minlength=8))
    for found in counts:
        assert ((found - 250) ** 2 / 250).sum() < 30  # 7 degrees of freedom: p = 1e-4


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 32), st.integers(0, 70), st.integers(0, 99))
def test_packing_is_undone(bits, length, seed):
    numbers = np.random.default_rng(seed).integers(0, 2**bits, length).astype(dtype(bits))
    content = pack(numbers, bits)
    assert len(content) == (length * bits + 7) // 8
    np.testing.assert_array_equal(unpack(content, length, bits), numbers)
    with refuses("FP6120"):
        unpack(content + b"\0", length, bits)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_bytes_are_a_message_or_refused_in_a_sentence(content):
    for read in (words.read_keys, words.read_peers, words.read_sealed, words.read_ids, words.read_witnesses,
                 words.read_shares):  # fmt: skip
        try:
            read(content)
        except PayloadError:
            continue


@pytest.mark.parametrize(("clients", "degree"), [(3, 2), (10, 4), (11, 5), (100, 20), (7, 100)])
def test_neighbours_are_mutual_and_as_many_as_said(clients, degree):
    found = graph(list(range(clients)), degree, 5, 2)
    for client, near in found.items():
        assert client not in near
        assert len(set(near)) == len(near) == min(2 * ((degree + 1) // 2), clients - 1)
        assert all(client in found[peer] for peer in near)


def test_keys_and_secrets_are_those_of_the_standard():
    """RFC 7748, section 6.1."""
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert derive_public_key(alice) == bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert derive_public_key(bob) == bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    shared = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert (
        X25519PrivateKey.from_private_bytes(alice).exchange(X25519PublicKey.from_public_bytes(derive_public_key(bob)))
        == shared
    )
    info = b"seal\0" + b"there" + (1).to_bytes(4, "big") + (2).to_bytes(4, "big")
    derived = HKDF(SHA256(), 32, salt=None, info=info).derive(shared)
    assert derive_seed(alice, derive_public_key(bob), "seal", b"there", 1, 2) == derived


def test_a_mask_is_the_keystream_of_the_standard():
    """RFC 8439, appendix A.1, test vector 1: key, nonce and counter all zero."""
    block = bytes.fromhex(
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    )
    np.testing.assert_array_equal(stream(bytes(32), 16, 32), np.frombuffer(block, "<u4"))


def test_seeds_are_derived_as_the_standard_says():
    """HKDF-SHA256 (RFC 5869) written out: extract with a zero salt, expand once."""
    one, other = bytes(range(32)), bytes(range(1, 33))
    secret = X25519PrivateKey.from_private_bytes(one).exchange(
        X25519PublicKey.from_public_bytes(derive_public_key(other))
    )
    extracted = hmac.digest(bytes(32), secret, "sha256")
    info = b"mask\0" + b"context" + (3).to_bytes(4, "big") + (9).to_bytes(4, "big")
    expected = hmac.digest(extracted, info + b"\1", "sha256")
    assert derive_seed(one, derive_public_key(other), "mask", b"context", 3, 9) == expected
    assert derive_seed(other, derive_public_key(one), "mask", b"context", 3, 9) == expected

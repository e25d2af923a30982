"""A client's part in one secure sum (Bonawitz et al., CCS 2017; Bell et al., CCS 2020).

    1  keys      draw a seed b and two key pairs; advertise the public keys, signed
    2  sealed    share b and the private mask key among the neighbors, sealed for each
    3  vector    y = x + PRG(b) + sum_{j < i} PRG(s_ij) - sum_{j > i} PRG(s_ij)  mod M, over neighbors j that shared
    4  witness   sign the set of those whose vectors have arrived
    5  shares    once enough neighbors have signed the same set: for each neighbor in it the share of b, for each
                 that dropped out the share of its mask key; never both for one, and only once

Every step checks the coordinator's earlier messages. A contradiction ends the member's part.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedpeft.errors import PayloadError
from fedpeft.privacy.secure_sum import shamir
from fedpeft.privacy.secure_sum.certificates import fingerprint
from fedpeft.privacy.secure_sum.masks import KEY, derive_public_key, derive_seed, dtype, pack, reduce_modulo, stream
from fedpeft.privacy.secure_sum.neighbours import Terms
from fedpeft.privacy.secure_sum.roster import Membership, PrivateKey, signature
from fedpeft.privacy.secure_sum.words import (
    MASK,
    SEED,
    Keys,
    Reader,
    read_ids,
    read_peers,
    read_sealed,
    read_witnesses,
    write_ids,
    write_peers,
    write_sealed,
    write_shares,
)

VECTORS = 3
"""Number of the step in which clients read examples and send their vectors."""

NONCE = bytes(12)
"""A constant nonce: every sealed message has its own key, for one sum and one direction between two members."""


@dataclass
class Member:
    """One client in one sum. Steps are taken in order, each once.

    Attributes:
        client: its id.
        terms: the terms of the sum.
        key: the key that it signs with.
        roster: decides whose keys it accepts.
        certificate: the certificate of its key, DER; empty: everybody knows the key.
        fewest: the fewest neighbors with which it takes part in a sum, and helps to remove the masks.
        wary: whether it counts only on the noise of survivors whose keys it has accepted; else it trusts the server's
            list.
        draw: returns this many random bytes.
    """

    client: int
    terms: Terms
    key: PrivateKey
    roster: Membership
    certificate: bytes = b""
    fewest: int = 2
    wary: bool = False
    draw: Callable[[int], bytes] = os.urandom
    peers: dict[int, Keys] = field(default_factory=dict)
    sealed: dict[int, bytes] = field(default_factory=dict)
    survivors: frozenset[int] = frozenset()
    steps: int = 0
    _seed: bytes = field(default=b"", repr=False)
    _mask: bytes = field(default=b"", repr=False)
    _share: bytes = field(default=b"", repr=False)

    def keys(self) -> bytes:
        """Take step 1, and return the signed keys that the member advertises."""
        self._begin_step(1)
        self._seed, self._mask, self._share = self.draw(KEY), self.draw(KEY), self.draw(KEY)
        keys = Keys(derive_public_key(self._mask), derive_public_key(self._share), hashlib.sha256(self._seed).digest())
        signed = signature(self.key, format_key_message(self.terms, self.client, keys))
        return Keys(keys.mask, keys.share, keys.commitment, signed, self.certificate).to_bytes()

    def shares_for(self, peers: bytes) -> bytes:
        """Take step 2, and return shares of its secrets for the neighbors whose keys have arrived.

        Raises:
            PayloadError: the keys are not the neighbors', or there are too few of them.
        """
        self._begin_step(2)
        self.peers = read_peers(peers)
        if self.client in self.peers:
            raise PayloadError(f"FP6121 client {self.client} is listed as its own neighbor")
        for peer, keys in self.peers.items():
            self.roster.verify(peer, format_key_message(self.terms, peer, keys), keys.signature, keys.certificate)
        if len({keys.mask for keys in self.peers.values()}) < len(self.peers):
            raise PayloadError("FP6122 two neighbors have the same keys")
        shown = [*filter(None, (self.certificate, *(keys.certificate for keys in self.peers.values())))]
        if len(set(map(fingerprint, shown))) < len(shown):
            raise PayloadError("FP6123 two members show the same certificate: one of them was invented")
        needed = self.terms.needed_shares
        if self.terms.neighbor_count < self.fewest or len(self.peers) > self.terms.neighbor_count:
            raise PayloadError(
                f"FP6124 {len(self.peers)} neighbors share masks with this client, of {self.terms.neighbor_count} that "
                f"the server has announced; legal are at least {self.fewest} announced, and no more than those"
            )
        self._check_enough(len(self.peers), f"{len(self.peers)} neighbors share masks with this client")
        holders = sorted(self.peers)
        seeds = shamir.split(self._seed, holders, needed, self.draw)
        masks = shamir.split(self._mask, holders, needed, self.draw)
        return write_sealed({peer: self._seal(peer, seeds[peer] + masks[peer]) for peer in holders})

    def hear(self, sealed: bytes) -> None:
        """Take the part of step 3 before its numbers are needed: accept the neighbors' sealed shares.

        Raises:
            PayloadError: shares come from clients that are not neighbors, or from too few neighbors.
        """
        self._begin_step(3)
        self.sealed = read_sealed(sealed)
        self._check_known(self.sealed, "shares")
        self._check_enough(len(self.sealed), f"{len(self.sealed)} neighbors remain")

    def vector(self, sealed: bytes, numbers: np.ndarray) -> bytes:
        """Take step 3, and return the numbers, (length,) integers modulo 2^bits, under masks.

        Raises:
            PayloadError: shares come from clients that are not neighbors, or from too few neighbors.
        """
        self.hear(sealed)
        terms = self.terms
        assert numbers.shape == (terms.length,)
        assert numbers.dtype == dtype(terms.bits)
        masked = numbers + stream(self._seed, terms.length, terms.bits)
        for peer in self.sealed:
            mask = derive_pairwise_mask(terms, self._mask, self.peers[peer].mask, self.client, peer)
            masked = masked + mask if peer < self.client else masked - mask
        return pack(reduce_modulo(masked, terms.bits), terms.bits)

    def witness(self, survivors: bytes) -> bytes:
        """Take step 4, and return the member's signature over the set of clients whose vectors have arrived.

        Raises:
            PayloadError: the set is impossible.
        """
        self._begin_step(4)
        self.survivors = read_ids(survivors)
        if self.client not in self.survivors:
            raise PayloadError("FP6125 the server reports that this client's vector has not arrived")
        if strangers := self.roster.strangers(self.survivors):
            raise PayloadError(f"FP6126 the server lists survivors {strangers!s:.80}, which are not in the roster")
        if late := sorted((self.survivors & self.peers.keys()) - self.sealed.keys()):
            raise PayloadError(f"FP6127 the server lists survivors {late!s:.80}, which have shared no keys")
        alive = len(self.survivors & self.sealed.keys())
        self._check_enough(alive, f"vectors of {alive} neighbors have arrived")
        noisy = alive + 1 if self.wary else len(self.survivors)
        if noisy < self.terms.least:
            raise PayloadError(
                f"FP6128 {noisy} vectors have arrived; fewer than {self.terms.least} contain too little noise"
            )
        return signature(self.key, format_survivor_message(self.terms, write_ids(self.survivors)))

    def unmask(self, witnesses: bytes) -> bytes:
        """Take step 5, and return the shares that remove the masks of this sum and of nothing else.

        Raises:
            PayloadError: too few neighbors have signed this set.
        """
        self._begin_step(5)
        signatures = read_witnesses(witnesses)
        self._check_known(signatures, "signatures")
        content = format_survivor_message(self.terms, write_ids(self.survivors))
        for peer, signed in signatures.items():
            if peer not in self.survivors:
                raise PayloadError(f"FP6129 client {peer} has signed, but the server lists it as dropped out")
            self.roster.verify(peer, content, signed, self.peers[peer].certificate)
        needed = self.terms.needed_shares
        if len(signatures) < needed:
            raise PayloadError(
                f"FP6130 {len(signatures)} neighbors have signed the list of survivors; {needed} are needed"
            )
        shares = {}
        for peer, content in self.sealed.items():
            seed, mask = self._open(peer, content)
            shares[peer] = (SEED, seed) if peer in self.survivors else (MASK, mask)
        return write_shares(shares)

    def to_bytes(self) -> bytes:
        """Return the member's progress, with its secrets, for a file that nobody else can read."""
        parts = (write_peers(self.peers), write_sealed(self.sealed), write_ids(self.survivors))
        told = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return self._whose + bytes([self.steps]) + self._seed + self._mask + self._share + told

    def restore(self, content: bytes) -> Self:
        """Continue from the progress that `to_bytes` has written after a step.

        Raises:
            PayloadError: the bytes belong to another client or another sum, or are damaged.
        """
        reader = Reader(content, "a member's own notes")
        if reader.take(len(self._whose)) != self._whose:
            raise PayloadError(f"FP6131 client {self.client} can't continue a secure sum that it has not begun")
        self.steps = reader.take(1)[0]
        self._seed, self._mask, self._share = reader.take(KEY), reader.take(KEY), reader.take(KEY)
        peers, sealed, survivors = (reader.take(reader.number()) for _ in range(3))
        reader.end()
        self.peers, self.sealed, self.survivors = read_peers(peers), read_sealed(sealed), read_ids(survivors)
        return self

    @property
    def _whose(self) -> bytes:
        return self.terms.digest + self.client.to_bytes(4, "big")

    def _begin_step(self, step: int) -> None:
        if self.steps != step - 1:
            raise PayloadError(
                f"FP6132 step {step} of a secure sum was requested after step {self.steps}; each is taken once"
            )
        self.steps = step

    def _check_enough(self, there: int, said: str) -> None:
        if there < self.terms.needed_shares:
            raise PayloadError(f"FP6133 {said}; {self.terms.needed_shares} are needed")
        if there < self.fewest:
            raise PayloadError(f"FP6134 {said}; this client needs {self.fewest} or more (--fewest {self.fewest + 1})")

    def _check_known(self, named: dict[int, bytes], what: str) -> None:
        if strangers := sorted(named.keys() - self.peers.keys()):
            raise PayloadError(f"FP6135 {what} of clients {strangers!s:.80}, which are not neighbors")

    def _seal(self, peer: int, content: bytes) -> bytes:
        key = self._derive_sealing_key(self.client, peer, peer)
        return ChaCha20Poly1305(key).encrypt(NONCE, content, None)

    def _open(self, peer: int, content: bytes) -> tuple[bytes, bytes]:
        try:
            plain = ChaCha20Poly1305(self._derive_sealing_key(peer, self.client, peer)).decrypt(NONCE, content, None)
        except InvalidTag:
            raise PayloadError(f"FP6136 the sealed shares of client {peer} were changed in transit") from None
        return plain[: shamir.SHARE], plain[shamir.SHARE :]

    def _derive_sealing_key(self, sender: int, receiver: int, peer: int) -> bytes:
        return derive_seed(self._share, self.peers[peer].share, "seal", self.terms.context, sender, receiver)


def derive_pairwise_mask(terms: Terms, private: bytes, peer_public: bytes, one: int, other: int) -> np.ndarray:
    """Return the mask that two members share; both compute the same."""
    seed = derive_seed(private, peer_public, "mask", terms.context, min(one, other), max(one, other))
    return stream(seed, terms.length, terms.bits)


def format_key_message(terms: Terms, client: int, keys: Keys) -> bytes:
    """Return the content that a member signs to advertise its keys."""
    return b"fedpeft secure sum keys" + terms.digest + client.to_bytes(4, "big") + keys.signed_content


def format_survivor_message(terms: Terms, survivors: bytes) -> bytes:
    """Return the content that a member signs to witness the survivors."""
    return b"fedpeft secure sum survivors" + terms.digest + hashlib.sha256(survivors).digest()

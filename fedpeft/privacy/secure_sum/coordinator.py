"""The server's part in one secure sum: it passes messages between members, adds up vectors, and removes the masks.

Members may drop out at every step. The sum is exactly that of the vectors that arrived, as long as enough neighbors
remain for two groups: the clients whose vectors arrived, and the clients that dropped out before that. Otherwise the
sum is void.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import comb
from typing import Final

import numpy as np

from fedpeft.errors import PayloadError
from fedpeft.privacy.secure_sum import shamir
from fedpeft.privacy.secure_sum.certificates import fingerprint
from fedpeft.privacy.secure_sum.masks import check_public, derive_public_key, dtype, pack, reduce_modulo, stream, unpack
from fedpeft.privacy.secure_sum.member import derive_pairwise_mask, format_key_message, format_survivor_message
from fedpeft.privacy.secure_sum.neighbours import Terms
from fedpeft.privacy.secure_sum.roster import Membership
from fedpeft.privacy.secure_sum.words import (
    MASK,
    SEED,
    Keys,
    read_keys,
    read_sealed,
    read_shares,
    write_ids,
    write_peers,
    write_sealed,
    write_witnesses,
)

MOST_SUBSETS: Final = 5000
"""The most sets of shares that are tried for one secret, which covers cohorts of up to 17 by default."""


class VoidError(PayloadError):
    """Error of a sum that is void because too many members have dropped out."""


@dataclass
class Coordinator:
    """The coordinator of one sum.

    Attributes:
        terms: the terms of the sum.
        graph: the neighbors of each client that was asked.
        roster: checks the signatures of keys; None: the server cannot check signatures.
        false_shares: for each holder of false shares, the clients whose secrets they belong to.
        refusals: reasons why clients whose vectors are in the sum have not helped to remove the masks.
    """

    terms: Terms
    graph: Mapping[int, list[int]]
    roster: Membership | None = None
    false_shares: dict[int, set[int]] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    keys: dict[int, Keys] = field(default_factory=dict)
    sealed: dict[int, dict[int, bytes]] = field(default_factory=dict)
    witnesses: dict[int, bytes] = field(default_factory=dict)
    survivors: list[int] = field(default_factory=list)
    _sum: np.ndarray | None = None
    _shares: dict[tuple[int, int], dict[int, bytes]] = field(default_factory=dict)

    def take_keys(self, client: int, content: bytes) -> None:
        """Take the keys of step 1, unless other members would refuse them, and with them the whole sum.

        Raises:
            PayloadError: the keys are not usable, the client has not signed them, or they are those of another client.
        """
        keys = read_keys(content)
        for key in (keys.mask, keys.share):
            check_public(key)
        if self.roster is not None:
            self.roster.verify(client, format_key_message(self.terms, client, keys), keys.signature, keys.certificate)
        shown = fingerprint(keys.certificate) if keys.certificate else ""
        for other, taken in self.keys.items():
            if taken.mask == keys.mask or (shown and fingerprint(taken.certificate) == shown):
                raise PayloadError(f"FP6183 client {client} shows the keys or the certificate of client {other}")
        self.keys[client] = keys

    def peers(self, client: int) -> bytes:
        """Return the message for step 2: the keys of the client's neighbors."""
        return write_peers({peer: self.keys[peer] for peer in self.graph[client] if peer in self.keys})

    def take_sealed(self, client: int, content: bytes) -> None:
        """Take the sealed shares of step 2.

        Raises:
            PayloadError: they are not exactly for the client's neighbors.
        """
        sealed = read_sealed(content)
        if sealed.keys() != {peer for peer in self.graph[client] if peer in self.keys}:
            raise PayloadError(f"FP6113 client {client} has sealed shares for others than its neighbors")
        self.sealed[client] = sealed

    def sealed_for(self, client: int) -> bytes:
        """Return the message for step 3: the shares that the client's neighbors have sealed for it."""
        return write_sealed({peer: self.sealed[peer][client] for peer in self._list_sharing(client)})

    def take_vector(self, client: int, content: bytes) -> None:
        """Add the masked vector of step 3.

        Raises:
            PayloadError: it has another length.
        """
        vector = unpack(content, self.terms.length, self.terms.bits)
        if self._sum is None:
            self._sum = np.zeros(self.terms.length, dtype(self.terms.bits))
        self._sum += vector
        self.survivors.append(client)

    def write_sum(self) -> bytes:
        """Return the sum of the masked vectors that have arrived, as bytes for a file; empty: none has arrived."""
        return b"" if self._sum is None else pack(reduce_modulo(self._sum, self.terms.bits), self.terms.bits)

    def restore(self, survivors: Sequence[int], content: bytes) -> None:
        """Continue after step 3 with the sum that `write_sum` has written.

        Args:
            survivors: the clients whose vectors are in the sum.
            content: the bytes of `write_sum`.

        Raises:
            PayloadError: the bytes have another length.
        """
        self.survivors = list(survivors)
        self._sum = unpack(content, self.terms.length, self.terms.bits).copy() if content else None

    def write_survivors(self) -> bytes:
        """Return the message for step 4: the clients whose vectors have arrived."""
        return write_ids(self.survivors)

    def take_witness(self, client: int, content: bytes) -> None:
        """Take the signature of step 4.

        Raises:
            PayloadError: the client has not signed these survivors; its neighbors would refuse to unmask the sum.
        """
        if self.roster is not None:
            signed = format_survivor_message(self.terms, self.write_survivors())
            self.roster.verify(client, signed, content, self.keys[client].certificate)
        self.witnesses[client] = content

    def witnesses_for(self, client: int) -> bytes:
        """Return the message for step 5: the signatures of the client's neighbors."""
        return write_witnesses({peer: self.witnesses[peer] for peer in self.graph[client] if peer in self.witnesses})

    def take_shares(self, client: int, content: bytes) -> None:
        """Take the shares of step 5.

        Raises:
            PayloadError: a share belongs to a client that is not a neighbor, or to the wrong secret.
        """
        survivors = set(self.survivors)
        shares = read_shares(content)
        for peer, (which, _) in shares.items():
            if peer not in self._list_sharing(client) or which != (SEED if peer in survivors else MASK):
                raise PayloadError(f"FP6114 client {client} sends a share of client {peer} that nobody requested")
        for peer, (which, share) in shares.items():
            self._shares.setdefault((peer, which), {})[client] = share

    def sum(self) -> np.ndarray:
        """Return the sum modulo 2^bits of the vectors that have arrived, (length,).

        Raises:
            VoidError: too few shares are left, or the shares do not lead to a secret.
        """
        if self._sum is None:
            raise VoidError("FP6115 no masked vector has arrived")
        total, terms, survivors = self._sum.copy(), self.terms, set(self.survivors)
        for client in survivors:
            total -= stream(self._recover_secret(client, SEED), terms.length, terms.bits)
        for client in self.sealed.keys() - survivors:
            private = None
            for peer in self._list_sharing(client):
                if peer not in survivors:
                    continue
                private = private or self._recover_secret(client, MASK)
                mask = derive_pairwise_mask(terms, private, self.keys[peer].mask, client, peer)
                if client < peer:
                    total -= mask
                else:
                    total += mask
        return reduce_modulo(total, terms.bits)

    def _list_sharing(self, client: int) -> list[int]:
        return [peer for peer in self.graph[client] if client in self.sealed.get(peer, {})]

    def _recover_secret(self, client: int, which: int) -> bytes:
        """Return a client's seed or private mask key, computed from its neighbors' shares.

        False shares lead to another number, which the client's public keys reveal. They are corrected in two cases: at
        most half of the surplus shares are false, or there are at most `MOST_SUBSETS` ways to choose the needed shares.

        Raises:
            VoidError: too few shares have arrived, or they do not lead to the secret.
        """
        shares, keys = self._shares.get((client, which), {}), self.keys[client]
        needed = self.terms.needed_shares
        what = "seed" if which == SEED else "mask key"
        if len(shares) < needed:
            raise VoidError(
                f"FP6116 the sum is void: {len(shares)} of a client's neighbors have sent their shares of its {what}, "
                f"and {needed} are needed to remove the masks"
            )
        trusted = dict(sorted(shares.items(), key=lambda item: item[0] in self.false_shares))
        for chosen in _list_choices(trusted, needed):
            try:
                secret = shamir.join(chosen, needed)
            except PayloadError:
                continue
            told = hashlib.sha256(secret).digest() if which == SEED else derive_public_key(secret)
            if told == (keys.commitment if which == SEED else keys.mask):
                if list(chosen) != list(shares)[:needed]:
                    for holder in shamir.find_false(shares, chosen, needed):
                        self.false_shares.setdefault(holder, set()).add(client)
                return secret
        raise VoidError(f"FP6117 the sum is void: the shares of client {client}'s {what} do not lead to it")


def _list_choices(shares: Mapping[int, bytes], needed: int) -> Iterator[Mapping[int, bytes]]:
    """Yield sets of shares that may all be right: the first ones, those of the nearest polynomial, then all subsets."""
    yield dict(list(shares.items())[:needed])
    if (right := shamir.correct_shares(shares, needed)) is not None:
        yield right
    if comb(len(shares), needed) <= MOST_SUBSETS:
        for holders in combinations(shares, needed):
            yield {holder: shares[holder] for holder in holders}

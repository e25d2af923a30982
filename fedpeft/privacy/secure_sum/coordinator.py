"""The server's part in one secure sum: it passes on what members say to each other, adds up, and takes the masks off.

Members may drop out at every step; as long as each client whose vector arrived, and each that dropped out before it,
has enough neighbours left, the sum is that of the vectors that arrived, exactly. Otherwise the sum is void.
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
from fedpeft.privacy.secure_sum.masks import check_public, dtype, packed, public, reduced, stream, unpacked
from fedpeft.privacy.secure_sum.member import advertised, pairwise, witnessed
from fedpeft.privacy.secure_sum.neighbours import Terms
from fedpeft.privacy.secure_sum.roster import Membership
from fedpeft.privacy.secure_sum.words import (
    MASK,
    SEED,
    Keys,
    keys_of,
    read_sealed,
    read_shares,
    write_ids,
    write_peers,
    write_sealed,
    write_witnesses,
)

MOST_SUBSETS: Final = 5000
"""Sets of shares that are tried for one secret: all of them in cohorts of up to 17 with the default threshold."""


class VoidError(PayloadError):
    """Too many members have dropped out: there is no sum."""


@dataclass
class Coordinator:
    """One sum.

    Attributes:
        terms: of the sum.
        graph: the neighbours of each client that was asked.
        roster: whose signed keys are taken; None: the server cannot check signatures.
        false_shares: by holder, the clients of whose secrets it has given false shares.
        refusals: why clients whose vectors are in the sum have not helped to take the masks off.
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
            PayloadError: the keys are not usable, not signed by the client, or those of another client.
        """
        keys = keys_of(content)
        for key in (keys.mask, keys.share):
            check_public(key)
        if self.roster is not None:
            self.roster.verify(client, advertised(self.terms, client, keys), keys.signature, keys.certificate)
        shown = fingerprint(keys.certificate) if keys.certificate else ""
        for other, taken in self.keys.items():
            if taken.mask == keys.mask or (shown and fingerprint(taken.certificate) == shown):
                raise PayloadError(f"FP6183 client {client} shows the keys or the certificate of client {other}")
        self.keys[client] = keys

    def peers(self, client: int) -> bytes:
        """For step 2."""
        return write_peers({peer: self.keys[peer] for peer in self.graph[client] if peer in self.keys})

    def take_sealed(self, client: int, content: bytes) -> None:
        """After step 2; raises PayloadError where they are not for all its neighbours."""
        sealed = read_sealed(content)
        if sealed.keys() != {peer for peer in self.graph[client] if peer in self.keys}:
            raise PayloadError(f"FP6113 client {client} has sealed shares for others than its neighbours")
        self.sealed[client] = sealed

    def sealed_for(self, client: int) -> bytes:
        """For step 3: from the neighbours that have shared."""
        return write_sealed({peer: self.sealed[peer][client] for peer in self._sharing(client)})

    def take_vector(self, client: int, content: bytes) -> None:
        """After step 3; raises PayloadError where it has another length."""
        vector = unpacked(content, self.terms.length, self.terms.bits)
        if self._sum is None:
            self._sum = np.zeros(self.terms.length, dtype(self.terms.bits))
        self._sum += vector
        self.survivors.append(client)

    def summed(self) -> bytes:
        """The sum of the masked vectors that have arrived, for a file; empty: none has."""
        return b"" if self._sum is None else packed(reduced(self._sum, self.terms.bits), self.terms.bits)

    def restore(self, survivors: Sequence[int], content: bytes) -> None:
        """Go on after step 3, with what `summed` has written of these clients' vectors."""
        self.survivors = list(survivors)
        self._sum = unpacked(content, self.terms.length, self.terms.bits).copy() if content else None

    def arrived(self) -> bytes:
        """For step 4."""
        return write_ids(self.survivors)

    def take_witness(self, client: int, content: bytes) -> None:
        """Take the signature of step 4.

        Raises:
            PayloadError: the client has not signed these survivors; its neighbors would refuse to unmask the sum.
        """
        if self.roster is not None:
            signed = witnessed(self.terms, self.arrived())
            self.roster.verify(client, signed, content, self.keys[client].certificate)
        self.witnesses[client] = content

    def witnesses_for(self, client: int) -> bytes:
        """For step 5: from the neighbours that have signed."""
        return write_witnesses({peer: self.witnesses[peer] for peer in self.graph[client] if peer in self.witnesses})

    def take_shares(self, client: int, content: bytes) -> None:
        """After step 5; raises PayloadError where they are of others than its neighbours, or of the wrong secrets."""
        survivors = set(self.survivors)
        shares = read_shares(content)
        for peer, (which, _) in shares.items():
            if peer not in self._sharing(client) or which != (SEED if peer in survivors else MASK):
                raise PayloadError(f"FP6114 client {client} sends a share of client {peer} that was not asked for")
        for peer, (which, share) in shares.items():
            self._shares.setdefault((peer, which), {})[client] = share

    def sum(self) -> np.ndarray:
        """The sum modulo 2^bits of the vectors that have arrived, (length,).

        Raises:
            VoidError: too few shares are left, or those that came lead to no secret.
        """
        if self._sum is None:
            raise VoidError("FP6115 no masked vector has arrived")
        total, terms, survivors = self._sum.copy(), self.terms, set(self.survivors)
        for client in survivors:
            total -= stream(self._secret(client, SEED), terms.length, terms.bits)
        for client in self.sealed.keys() - survivors:
            private = None
            for peer in self._sharing(client):
                if peer not in survivors:
                    continue
                private = private or self._secret(client, MASK)
                mask = pairwise(terms, private, self.keys[peer].mask, client, peer)
                if client < peer:
                    total -= mask
                else:
                    total += mask
        return reduced(total, terms.bits)

    def _sharing(self, client: int) -> list[int]:
        return [peer for peer in self.graph[client] if client in self.sealed.get(peer, {})]

    def _secret(self, client: int, which: int) -> bytes:
        """A client's seed or private mask key, from its neighbours' shares.

        False shares lead to another number, which the client's keys tell. They are corrected if there are at most half
        as many as shares beyond the needed ones, or at most `MOST_SUBSETS` ways to choose the needed ones.
        """
        shares, keys = self._shares.get((client, which), {}), self.keys[client]
        needed = self.terms.needed
        what = "seed" if which == SEED else "mask key"
        if len(shares) < needed:
            raise VoidError(
                f"FP6116 the sum is void: {len(shares)} of a client's neighbours have told their shares of its {what}, "
                f"and it takes {needed} to take the masks off"
            )
        trusted = dict(sorted(shares.items(), key=lambda item: item[0] in self.false_shares))
        for chosen in _choices(trusted, needed):
            try:
                secret = shamir.joined(chosen, needed)
            except PayloadError:
                continue
            told = hashlib.sha256(secret).digest() if which == SEED else public(secret)
            if told == (keys.commitment if which == SEED else keys.mask):
                if list(chosen) != list(shares)[:needed]:
                    for holder in shamir.find_false(shares, chosen, needed):
                        self.false_shares.setdefault(holder, set()).add(client)
                return secret
        raise VoidError(f"FP6117 the sum is void: the shares of client {client}'s {what} do not lead to it")


def _choices(shares: Mapping[int, bytes], needed: int) -> Iterator[Mapping[int, bytes]]:
    """Yield sets of shares that may all be right: the first ones, those of the nearest polynomial, then all subsets."""
    yield dict(list(shares.items())[:needed])
    if (right := shamir.corrected(shares, needed)) is not None:
        yield right
    if comb(len(shares), needed) <= MOST_SUBSETS:
        for holders in combinations(shares, needed):
            yield {holder: shares[holder] for holder in holders}

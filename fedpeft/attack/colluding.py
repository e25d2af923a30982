"""A malicious server and colluding clients against honest members of one secure sum, with any transport."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from fedpeft.errors import PayloadError
from fedpeft.privacy.secure_sum import shamir, words
from fedpeft.privacy.secure_sum.masks import derive_public_key, reduce_modulo, stream, unpack
from fedpeft.privacy.secure_sum.member import Member, derive_pairwise_mask, format_survivor_message
from fedpeft.privacy.secure_sum.neighbours import Terms
from fedpeft.privacy.secure_sum.roster import signature

T = TypeVar("T")


class HonestMember(Protocol):
    """Interface of an honest member of a sum, local or remote. It refuses a step with a PayloadError."""

    def keys(self) -> bytes:
        """Take step 1."""
        ...

    def shares_for(self, peers: bytes) -> bytes:
        """Take step 2."""
        ...

    def add(self, sealed: bytes) -> bytes:
        """Take step 3 with the member's own numbers."""
        ...

    def witness(self, survivors: bytes) -> bytes:
        """Take step 4."""
        ...

    def unmask(self, witnesses: bytes) -> bytes:
        """Take step 5."""
        ...


@dataclass
class SplitView:
    """Attack that shows two groups of honest clients different survivors.

    One group reveals the victim's seed, and the other its key. The victim's neighbors are the colluding clients and
    honest ones, `terms.neighbor_count` in all. Outsiders are honest clients that are not its neighbors; they sign with
    the second group.

    Attributes:
        terms: terms of the sum.
        victim: id and member of the client whose vector the server wants.
        near: the victim's honest neighbors, by id.
        outsiders: honest clients that are not its neighbors, by id.
        confederates: colluding clients with their keys, by id.
        refusals: sentences of honest members that refused a step.
    """

    terms: Terms
    victim: tuple[int, HonestMember]
    near: Mapping[int, HonestMember]
    outsiders: Mapping[int, HonestMember]
    confederates: Mapping[int, Member]
    refusals: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Divide the victim's honest neighbors into two groups."""
        self.id, member = self.victim
        self.honest: dict[int, HonestMember] = {self.id: member, **self.near, **self.outsiders}
        near = list(self.near)
        second = min(max(self.terms.needed_shares - len(self.confederates), 0), len(near) // 2)
        self.second, self.first, self.helpers = near[:second], near[second:], list(self.outsiders)

    def list_peers(self, client: int) -> list[int]:
        """Return the neighbors that the server announces to a client, the useful ones first."""
        near = [*self.confederates, self.id]
        if client in self.helpers:
            near = [*self.confederates, *self.second, *self.helpers]
        elif client in self.second:
            near += [*self.second, *self.helpers, *self.first]
        else:
            near += [*self.first, *self.second]
        return [peer for peer in near if peer != client][: self.terms.neighbor_count]

    def run(self) -> np.ndarray | None:
        """Return the victim's vector modulo 2^bits, or None if the attacker lacks shares."""
        said = {i: self._ask(member.keys) for i, member in self.honest.items()}
        keys = {i: words.read_keys(content) for i, content in said.items() if content is not None}
        keys |= {i: words.read_keys(member.keys()) for i, member in self.confederates.items()}
        sealed = self.exchange_shares(keys)
        masked = self._collect_vector(sealed)
        if masked is None:
            return None
        survivors: dict[int, list[int]] = {}
        for group in ([self.id, *self.first], [*self.second, *self.helpers]):
            survivors |= {client: [*group, *self.confederates] for client in group}
        shares = self._collect_shares(survivors, sealed)
        return remove_masks(self.terms, self.id, masked, shares, keys, [p for p in self.peers[self.id] if p in sealed])

    def exchange_shares(self, keys: Mapping[int, words.Keys]) -> dict[int, dict[int, bytes]]:
        """Take step 2: name the peers of each member, and return the sealed shares by sender and receiver."""
        self.peers = {i: [peer for peer in self.list_peers(i) if peer in keys] for i in self.honest}
        sealed: dict[int, dict[int, bytes]] = {}
        for i, member in self.honest.items():
            told = words.write_peers({peer: keys[peer] for peer in self.peers[i]})
            if i in keys and (content := self._ask(member.shares_for, told)) is not None:
                sealed[i] = words.read_sealed(content)
        for i, liar in self.confederates.items():
            liar.peers = {peer: keys[peer] for peer in self.honest if peer in keys}
            sealed[i] = {peer: liar._seal(peer, bytes(2 * shamir.SHARE)) for peer in liar.peers}
        return sealed

    def _ask(self, step: Callable[..., T], *said: bytes) -> T | None:
        """Return an honest member's answer, or None if it refuses."""
        try:
            return step(*said)
        except PayloadError as error:
            self.refusals.append(str(error))
            return None

    def _collect_vector(self, sealed: dict[int, dict[int, bytes]]) -> np.ndarray | None:
        """Return the victim's masked vector; all honest members take step 3."""
        vectors = {}
        for i, member in self.honest.items():
            heard = words.write_sealed({p: sealed[p][i] for p in self.peers[i] if i in sealed.get(p, {})})
            vectors[i] = self._ask(member.add, heard) if i in sealed else None
        content = vectors[self.id]
        return None if content is None else unpack(content, self.terms.length, self.terms.bits)

    def _collect_shares(self, survivors: dict[int, list[int]], sealed: dict[int, dict[int, bytes]]) -> Shares:
        """Return the shares of the victim's secrets, by holder and secret."""
        told = {i: words.write_ids(survivors[i]) for i in self.honest}
        signed = {i: self._ask(member.witness, told[i]) for i, member in self.honest.items()}
        shares: Shares = {}
        for i in [*self.first, *self.second]:
            content = format_survivor_message(self.terms, told[i])
            witnesses = {p: by for p in self.peers[i] if (by := signed.get(p)) and told[p] == told[i]}
            witnesses |= {p: signature(liar.key, content) for p, liar in self.confederates.items()}
            released = self._ask(self.honest[i].unmask, words.write_witnesses(witnesses))
            if released is not None and self.id in (of := words.read_shares(released)):
                which, share = of[self.id]
                shares[i, which] = share
        for i, liar in self.confederates.items():
            if i in sealed.get(self.id, {}):
                shares[i, words.SEED], shares[i, words.MASK] = liar._open(self.id, sealed[self.id][i])
        return shares


Shares = dict[tuple[int, int], bytes]
"""Shares of one client's two secrets, by holder and secret."""


def remove_masks(
    terms: Terms, client: int, masked: np.ndarray, shares: Shares, keys: Mapping[int, words.Keys], peers: Sequence[int]
) -> np.ndarray | None:
    """Return a client's vector without its masks, from shares of both of its secrets; None if there are too few.

    Args:
        terms: terms of the sum.
        client: id of the client.
        masked: its masked vector.
        shares: shares of its secrets.
        keys: the members' advertised keys.
        peers: the neighbors with which it shares masks.
    """

    def join_shares(which: int) -> bytes:
        held = {holder: share for (holder, of), share in shares.items() if of == which}
        return shamir.join(held, terms.needed_shares)

    try:
        seed, key = join_shares(words.SEED), join_shares(words.MASK)
    except PayloadError:
        return None
    if hashlib.sha256(seed).digest() != keys[client].commitment or derive_public_key(key) != keys[client].mask:
        return None
    bare = masked - stream(seed, terms.length, terms.bits)
    for peer in peers:
        mask = derive_pairwise_mask(terms, key, keys[peer].mask, client, peer)
        bare = bare - mask if peer < client else bare + mask
    return reduce_modulo(bare, terms.bits)

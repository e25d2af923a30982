"""A malicious server and colluding clients against honest members of one secure sum: reusable attack drivers."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedpeft.errors import PayloadError
from fedpeft.privacy.secure_sum import shamir, words
from fedpeft.privacy.secure_sum.masks import dtype, public, reduced, stream, unpacked
from fedpeft.privacy.secure_sum.member import Member, pairwise, witnessed
from fedpeft.privacy.secure_sum.neighbours import Terms
from fedpeft.privacy.secure_sum.roster import Roster, signature

VICTIM = 0


@dataclass
class SplitView:
    """Shows two groups of honest clients different survivors, and asks one for the victim's seed, one for its key.

    The victim's neighbors are the colluding clients and honest ones, `terms.neighbours` in all. `outsiders` are honest
    clients that are not its neighbors: they sign with the second group.

    Attributes:
        refusals: what honest members have answered instead of a message.
    """

    terms: Terms
    colluding: int
    outsiders: int
    refusals: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        k, c, t = self.terms.neighbours, self.colluding, self.terms.needed
        honest = list(range(1, k - c + 1))
        second = min(max(t - c, 0), len(honest) // 2)
        self.second, self.first = honest[:second], honest[second:]
        self.helpers = list(range(k + 1, k + 1 + self.outsiders))
        self.confederates = list(range(k - c + 1, k + 1))
        ids = [VICTIM, *honest, *self.helpers, *self.confederates]
        keys = {i: Ed25519PrivateKey.from_private_bytes(hashlib.sha256(struct.pack(">I", i)).digest()) for i in ids}
        roster = Roster({i: key.public_key() for i, key in keys.items()})
        self.members = {i: Member(i, self.terms, keys[i], roster) for i in ids}
        self.honest = [VICTIM, *honest, *self.helpers]
        self.secret = np.random.default_rng(7).integers(0, 2**self.terms.bits, self.terms.length)

    def peers_of(self, client: int) -> list[int]:
        """Return whom the server calls a client's neighbors: the useful ones first."""
        near = [*self.confederates, VICTIM]
        if client in self.helpers:
            near = [*self.confederates, *self.second, *self.helpers]
        elif client in self.second:
            near += [*self.second, *self.helpers, *self.first]
        else:
            near += [*self.first, *self.second]
        return [peer for peer in near if peer != client][: self.terms.neighbours]

    def run(self) -> np.ndarray | None:
        """Return the victim's vector as the attacker reads it; None: it lacks shares."""
        keys = {i: words.keys_of(member.keys()) for i, member in self.members.items()}
        self.peers = {i: self.peers_of(i) for i in self.honest}
        sealed = {}
        for i in self.honest:
            told = words.write_peers({peer: keys[peer] for peer in self.peers[i]})
            if (content := self._asked(self.members[i].shares_for, told)) is not None:
                sealed[i] = words.read_sealed(content)
        for i in self.confederates:
            member = self.members[i]
            member.peers = {peer: keys[peer] for peer in self.honest}
            sealed[i] = {peer: member._seal(peer, bytes(2 * shamir.SHARE)) for peer in self.honest}
        masked = self._vector(sealed)
        if masked is None:
            return None
        told = {}
        for group in ([VICTIM, *self.first], [*self.second, *self.helpers]):
            told |= {client: [*group, *self.confederates] for client in group}
        shares = self._shares(told, sealed)
        try:
            seed, key = (self._joined(shares, which) for which in (words.SEED, words.MASK))
        except PayloadError:
            return None
        if hashlib.sha256(seed).digest() != keys[VICTIM].commitment or public(key) != keys[VICTIM].mask:
            return None
        bare = masked - stream(seed, self.terms.length, self.terms.bits)
        for peer in self.members[VICTIM].sealed:
            mask = pairwise(self.terms, key, keys[peer].mask, VICTIM, peer)
            bare = bare - mask if peer < VICTIM else bare + mask
        return reduced(bare, self.terms.bits)

    def _asked(self, step, *said):
        """Return what an honest member answers; None: it refuses."""
        try:
            return step(*said)
        except PayloadError as error:
            self.refusals.append(str(error))
            return None

    def _vector(self, sealed: dict[int, dict[int, bytes]]) -> np.ndarray | None:
        """Return what the victim sends; all honest members take step 3."""
        vectors = {}
        for i in self.honest:
            heard = words.write_sealed({p: sealed[p][i] for p in self.peers[i] if i in sealed.get(p, {})})
            vectors[i] = self._asked(self.members[i].vector, heard, self.secret.astype(dtype(self.terms.bits)))
        content = vectors[VICTIM]
        return None if content is None else unpacked(content, self.terms.length, self.terms.bits)

    def _shares(self, told: dict[int, list[int]], sealed: dict) -> dict[tuple[int, int], bytes]:
        """Return shares of the victim's secrets, by holder and secret."""
        signed = {i: self._asked(self.members[i].witness, words.write_ids(told[i])) for i in self.honest}
        shares = {}
        for i in [*self.first, *self.second]:
            content = witnessed(self.terms, words.write_ids(told[i]))
            witnesses = {p: signed[p] for p in self.peers[i] if signed.get(p) and told[p] == told[i]}
            witnesses |= {p: signature(self.members[p].key, content) for p in self.confederates}
            released = self._asked(self.members[i].unmask, words.write_witnesses(witnesses))
            if released is not None and VICTIM in (of := words.read_shares(released)):
                which, share = of[VICTIM]
                shares[i, which] = share
        for i in self.confederates:
            seed, key = self.members[i]._open(VICTIM, sealed[VICTIM][i])
            shares[i, words.SEED], shares[i, words.MASK] = seed, key
        return shares

    def _joined(self, shares: dict[tuple[int, int], bytes], which: int) -> bytes:
        held = {holder: share for (holder, of), share in shares.items() if of == which}
        return shamir.joined(held, self.terms.needed)

"""The keys that a simulation's clients sign with: everybody can compute them, since nobody is to be kept out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedpeft.privacy.secure_sum.roster import Roster


def simulated_key(seed: int, client: int) -> Ed25519PrivateKey:
    """Of a client in the run with this seed."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"fedpeft simulated {seed} {client}".encode()).digest())


def simulated_roster(seed: int, clients: int) -> Roster:
    """Of clients 0 .. clients - 1."""
    return Roster(_Simulated(seed, clients))


@dataclass(frozen=True)
class _Simulated(Mapping[int, Ed25519PublicKey]):
    """Computed when they are looked at: a worker meets a few of very many."""

    seed: int
    clients: int

    def __getitem__(self, client: int) -> Ed25519PublicKey:
        if client not in self:
            raise KeyError(client)
        return simulated_key(self.seed, client).public_key()

    def __contains__(self, client: object) -> bool:
        return isinstance(client, int) and 0 <= client < self.clients

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.clients))

    def __len__(self) -> int:
        return self.clients

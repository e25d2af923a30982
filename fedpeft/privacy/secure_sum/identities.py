"""The signing keys of a simulation's clients; everybody can compute them, since a simulation keeps nobody out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedpeft.privacy.secure_sum.roster import Roster


def simulated_key(seed: int, client: int) -> Ed25519PrivateKey:
    """Return the signing key of a client in the run with this seed."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"fedpeft simulated {seed} {client}".encode()).digest())


def simulated_roster(seed: int, clients: int) -> Roster:
    """Return the roster of clients 0 to clients - 1."""
    return Roster(_Simulated(seed, clients))


@dataclass(frozen=True)
class _Simulated(Mapping[int, Ed25519PublicKey]):
    """Public keys that are computed on access, because a worker needs only a few of very many."""

    seed: int
    clients: int

    def __getitem__(self, client: int) -> Ed25519PublicKey:
        """Compute the public key of a client."""
        if client not in self:
            raise KeyError(client)
        return simulated_key(self.seed, client).public_key()

    def __contains__(self, client: object) -> bool:
        """Return whether the id is a client's."""
        return isinstance(client, int) and 0 <= client < self.clients

    def __iter__(self) -> Iterator[int]:
        """Iterate over the ids."""
        return iter(range(self.clients))

    def __len__(self) -> int:
        """Return the number of clients."""
        return self.clients

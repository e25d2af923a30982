"""The roster of a secure sum: who may take part, and the keys that they sign with.

A coordinator that could invent members would know all masks of a client except those of real members. If all of its
neighbors were invented, the coordinator could read the client. So a client accepts only keys in its roster, which it
received through another channel than the coordinator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from fedpeft.errors import PayloadError

PublicKey = Ed25519PublicKey | EllipticCurvePublicKey
PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey


class Membership(Protocol):
    """The rule that decides who may take part."""

    def verify(self, client: int, content: bytes, signature: bytes, certificate: bytes) -> None:
        """Reject content that a client has not signed, and clients that may not take part, with a PayloadError."""
        ...

    def strangers(self, clients: Iterable[int]) -> list[int]:
        """Return those of the clients that can't belong to the federation, sorted."""
        ...


@dataclass(frozen=True)
class Roster:
    """The public keys of all clients, by id, as everybody knows them in a simulation."""

    members: Mapping[int, PublicKey]

    def verify(self, client: int, content: bytes, signature: bytes, certificate: bytes) -> None:
        """Reject content that the client has not signed; the certificate is ignored.

        Raises:
            PayloadError: the client is not in the roster, or has signed something else.
        """
        key = self.members.get(client)
        if key is None:
            raise PayloadError(f"FP6137 client {client} is not in the roster of this client")
        check_signature(key, client, content, signature)

    def strangers(self, clients: Iterable[int]) -> list[int]:
        """Return those of the clients that are not in the roster, sorted."""
        return sorted(client for client in clients if client not in self.members)


def check_signature(key: PublicKey, client: int, content: bytes, signature: bytes) -> None:
    """Reject a signature that the owner of the key has not made.

    Raises:
        PayloadError: the signature is not that of the client.
    """
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, content)
        else:
            key.verify(signature, content, ECDSA(SHA256()))
    except InvalidSignature:
        raise PayloadError(f"FP6138 a signature is not that of client {client}") from None


def signature(key: PrivateKey, content: bytes) -> bytes:
    """Return the signature of the content by the owner of the key."""
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(content)
    return key.sign(content, ECDSA(SHA256()))

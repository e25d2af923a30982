"""Who may take part in a secure sum, and what each signs with.

A coordinator that could invent members would know all masks of a client but those of its inventions, and read it. So a
client takes keys of those only who stand in its roster, which it was handed by another way than the coordinator's.
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
    """Who may take part."""

    def verify(self, client: int, content: bytes, signature: bytes, certificate: bytes) -> None:
        """Refuse with a PayloadError what a client has not signed, or a client that may not take part."""
        ...

    def strangers(self, clients: Iterable[int]) -> list[int]:
        """Those of the clients that can't belong to the federation, sorted."""
        ...


@dataclass(frozen=True)
class Roster:
    """The public keys of the clients, by id: of all of them, as in a simulation everybody knows them."""

    members: Mapping[int, PublicKey]

    def verify(self, client: int, content: bytes, signature: bytes, certificate: bytes) -> None:
        """Refuse what the client has not signed.

        `certificate`: that it shows; of no account here.

        Raises:
            PayloadError: it does not stand here, or has signed something else.
        """
        key = self.members.get(client)
        if key is None:
            raise PayloadError(f"FP6137 client {client} is not in the roster that this one was handed")
        check_signature(key, client, content, signature)

    def strangers(self, clients: Iterable[int]) -> list[int]:
        """Those of the clients that can't belong to the federation."""
        return sorted(client for client in clients if client not in self.members)


def check_signature(key: PublicKey, client: int, content: bytes, signature: bytes) -> None:
    """Refuse a signature that the owner of the key has not made.

    Raises:
        PayloadError: as the one of another than the client.
    """
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, content)
        else:
            key.verify(signature, content, ECDSA(SHA256()))
    except InvalidSignature:
        raise PayloadError(f"FP6138 a signature is not that of client {client}") from None


def signature(key: PrivateKey, content: bytes) -> bytes:
    """Of the content, by the owner of the key."""
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(content)
    return key.sign(content, ECDSA(SHA256()))

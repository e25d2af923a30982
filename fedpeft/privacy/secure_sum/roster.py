"""Who may take part in a secure sum, and what each signs with.

A coordinator that could invent members would know all masks of a client but those of its inventions, and read it. So a
client takes keys of those only who stand in its roster, which it was handed by another way than the coordinator's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from fedpeft.errors import PayloadError, PrivacyError

PublicKey = Ed25519PublicKey | EllipticCurvePublicKey
PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey


@dataclass(frozen=True)
class Roster:
    """The public keys of the clients, by id."""

    members: Mapping[int, PublicKey]

    def verify(self, client: int, content: bytes, signature: bytes) -> None:
        """Refuse what the client has not signed.

        Raises:
            PayloadError: it does not stand here, or has signed something else.
        """
        key = self.members.get(client)
        if key is None:
            raise PayloadError(f"client {client} is not in the roster that this one was handed")
        try:
            if isinstance(key, Ed25519PublicKey):
                key.verify(signature, content)
            else:
                key.verify(signature, content, ECDSA(SHA256()))
        except InvalidSignature:
            raise PayloadError(f"a signature is not that of client {client}") from None


def signature(key: PrivateKey, content: bytes) -> bytes:
    """Of the content, by the owner of the key."""
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(content)
    return key.sign(content, ECDSA(SHA256()))


def checked(key: object, client: int) -> PublicKey:
    """A certificate's public key, if it is of a kind that secure sums use.

    Raises:
        PrivacyError: it is of another.
    """
    if isinstance(key, Ed25519PublicKey | EllipticCurvePublicKey):
        return key
    raise PrivacyError(
        f"the certificate of client {client} has a key that secure sums don't use; take ECDSA or Ed25519"
    )

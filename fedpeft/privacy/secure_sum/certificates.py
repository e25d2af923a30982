"""Members that show certificates: real clients.

Their authority has signed these certificates. Whoever has the authority's key could sign more of them, for invented
members, and read a client that is among those alone. So a client may pin a roster: it accepts only keys of certificates
whose fingerprints are in the roster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedpeft.errors import PayloadError, PrivacyError
from fedpeft.privacy.secure_sum.roster import PrivateKey, PublicKey, check_signature


@dataclass(frozen=True)
class Identity:
    """The identity of a real client in secure sums, and its conditions for taking part; plain data.

    Attributes:
        run: name of the federation.
        key: the private key that it signs with, PEM.
        certificate: its certificate, PEM.
        authority: certificate of the authority that signed its certificate, PEM.
        pinned: fingerprints of the certificates in its roster; None: it accepts all that the authority has signed.
        fewest: the fewest clients of a sum that it takes part in, itself included.
        collude: share of a sum's clients that it assumes to collude with the server.
    """

    run: str
    key: bytes = field(repr=False)
    certificate: bytes
    authority: bytes
    pinned: frozenset[str] | None = None
    fewest: int = 3
    collude: float = 0.0

    @property
    def private_key(self) -> PrivateKey:
        """The key that the client signs with.

        Raises:
            PrivacyError: secure sums do not use keys of this type.
        """
        key = serialization.load_pem_private_key(self.key, None)
        if isinstance(key, Ed25519PrivateKey | EllipticCurvePrivateKey):
            return key
        raise PrivacyError("FP7077 the client's key has a type that secure sums do not support; take ECDSA or Ed25519")

    @property
    def shown(self) -> bytes:
        """The certificate as members show it, DER."""
        return x509.load_pem_x509_certificate(self.certificate).public_bytes(serialization.Encoding.DER)


def fingerprint(certificate: bytes) -> str:
    """Return the SHA-256 of the part of a certificate (DER) that the authority has signed, in hexadecimal digits.

    The signature is left out. Anyone can turn an ECDSA signature (r, s) into the second valid one (r, -s), and so
    change the bytes of a certificate without the authority's key.

    Raises:
        ValueError: the bytes are not a certificate.
    """
    return hashlib.sha256(x509.load_der_x509_certificate(certificate).tbs_certificate_bytes).hexdigest()


class CertifiedRoster:
    """A roster of clients that show a certificate of the authority, and that are pinned if the identity pins a roster.

    Args:
        identity: the identity of the client that owns the roster.
        places: places of the federation.
        revoked: serial numbers of revoked certificates; clients have no such list.
    """

    def __init__(self, identity: Identity, places: int, revoked: Container[int] = ()) -> None:
        """Load the authority's certificate, and hold the rules."""
        self._authority = x509.load_pem_x509_certificate(identity.authority)
        self._pinned, self._places, self._revoked = identity.pinned, places, revoked
        self._keys: dict[bytes, PublicKey] = {}

    @classmethod
    def of_server(cls, authority: bytes, places: int, revoked: Container[int] = ()) -> Self:
        """Return the roster of a server, which accepts all clients of the authority (PEM) that are not `revoked`."""
        return cls(Identity("", b"", b"", authority), places, revoked)

    def verify(self, client: int, content: bytes, signature: bytes, certificate: bytes) -> None:
        """Reject content that the client has not signed, and clients that may not take part.

        Raises:
            PayloadError: the message names the client and the reason.
        """
        if certificate not in self._keys:
            self._keys[certificate] = self._check_certificate(client, certificate)
        check_signature(self._keys[certificate], client, content, signature)

    def strangers(self, clients: Iterable[int]) -> list[int]:
        """Return the clients beyond the places.

        A client has no certificates of clients other than its neighbors, so it can check nothing else.
        """
        return sorted(client for client in clients if client >= self._places)

    def _check_certificate(self, client: int, content: bytes) -> PublicKey:
        try:
            certificate = x509.load_der_x509_certificate(content)
            certificate.verify_directly_issued_by(self._authority)
            usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            key = certificate.public_key()
        except Exception as error:  # a peer's bytes: cryptography has many errors for them
            raise PayloadError(
                f"FP6106 client {client} shows a certificate that the authority in ca.pem has not made "
                f"({type(error).__name__})"
            ) from None
        called = f"client {client} shows the certificate {fingerprint(content)[:16]} ({_get_name(certificate)})"
        if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
            raise PayloadError(f"FP6107 {called}, which is not a client certificate")
        if not isinstance(key, Ed25519PublicKey | EllipticCurvePublicKey):
            raise PayloadError(f"FP6108 {called}, whose key secure sums do not use: give it an ECDSA or Ed25519 key")
        if not certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc:
            raise PayloadError(f"FP6109 {called}, which is not valid now")
        if certificate.serial_number in self._revoked:
            raise PayloadError(f"FP6190 {called}, which has been revoked")
        if self._pinned is not None and fingerprint(content) not in self._pinned:
            raise PayloadError(f"FP6110 {called}, which is not in the roster that this client has pinned")
        return key


def _get_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    text = str(names[0].value)[:63] if names else "no name"
    return text if text.isprintable() else ascii(text)

"""Members that show certificates: real clients.

Their authority has signed these certificates. Whoever has its key could sign more, for members that it has invented,
and read a client among them. So a client may pin a roster: it takes keys of certificates whose fingerprints stand in
it, and of no others.
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
    """Who a real client is in secure sums, and with whom it takes part in them; plain data.

    Attributes:
        run: name of the federation.
        key, certificate, authority: PEM; what it signs with, and who has signed its certificate.
        pinned: fingerprints of the certificates in its roster; None: all that the authority has signed are taken.
        fewest: clients of a sum that it takes part in, itself included.
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
        """What it signs with.

        Raises:
            PrivacyError: a key of a kind that secure sums don't use.
        """
        key = serialization.load_pem_private_key(self.key, None)
        if isinstance(key, Ed25519PrivateKey | EllipticCurvePrivateKey):
            return key
        raise PrivacyError("FP7077 the client's key is of a kind that secure sums don't use; take ECDSA or Ed25519")

    @property
    def shown(self) -> bytes:
        """The certificate as members show it, DER."""
        return x509.load_pem_x509_certificate(self.certificate).public_bytes(serialization.Encoding.DER)


def fingerprint(certificate: bytes) -> str:
    """Return the SHA-256 of what the authority has signed of a certificate (DER), in hexadecimal digits.

    The signature is left out. Anyone can turn an ECDSA signature (r, s) into the second valid one (r, -s), and so
    change the bytes of a certificate without the authority's key.

    Raises:
        ValueError: it is no certificate.
    """
    return hashlib.sha256(x509.load_der_x509_certificate(certificate).tbs_certificate_bytes).hexdigest()


class CertifiedRoster:
    """Takes keys of clients that show a certificate of the authority, and stand in the roster if one is pinned.

    Args:
        identity: whose roster it is.
        places: of the federation.
        revoked: serial numbers of certificates that count no more; clients have no such list.
    """

    def __init__(self, identity: Identity, places: int, revoked: Container[int] = ()) -> None:
        self._authority = x509.load_pem_x509_certificate(identity.authority)
        self._pinned, self._places, self._revoked = identity.pinned, places, revoked
        self._keys: dict[bytes, PublicKey] = {}

    @classmethod
    def of_server(cls, authority: bytes, places: int, revoked: Container[int] = ()) -> Self:
        """Return the roster of a server, which takes all clients of the authority (PEM) that are not `revoked`."""
        return cls(Identity("", b"", b"", authority), places, revoked)

    def verify(self, client: int, content: bytes, signature: bytes, certificate: bytes) -> None:
        """Refuse what the client has not signed, and clients that may not take part.

        Raises:
            PayloadError: says which.
        """
        if certificate not in self._keys:
            self._keys[certificate] = self._checked(client, certificate)
        check_signature(self._keys[certificate], client, content, signature)

    def strangers(self, clients: Iterable[int]) -> list[int]:
        """Those beyond the places; of others in a sum than its neighbours a client knows no more."""
        return sorted(client for client in clients if client >= self._places)

    def _checked(self, client: int, content: bytes) -> PublicKey:
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
        called = f"client {client} shows the certificate {fingerprint(content)[:16]} ({_name(certificate)})"
        if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
            raise PayloadError(f"FP6107 {called}, which is no client's")
        if not isinstance(key, Ed25519PublicKey | EllipticCurvePublicKey):
            raise PayloadError(f"FP6108 {called}, whose key is of a kind that secure sums don't use: ECDSA or Ed25519")
        if not certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc:
            raise PayloadError(f"FP6109 {called}, which is not valid now")
        if certificate.serial_number in self._revoked:
            raise PayloadError(f"FP6190 {called}, which has been revoked")
        if self._pinned is not None and fingerprint(content) not in self._pinned:
            raise PayloadError(f"FP6110 {called}, which is not in the roster that this client was handed")
        return key


def _name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    text = str(names[0].value)[:63] if names else "no name"
    return text if text.isprintable() else ascii(text)

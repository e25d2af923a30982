"""Signatures of a server: with the key of its TLS certificate, checked against the authority that has signed that.

A signed text begins with a line that names its kind. So no signature of TLS, or of another kind of statement, passes
for it. Each statement carries the certificate of its key. It can be checked for as long as the authority's certificate
is kept, whatever key the server has by then.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedpeft.deployment.identity.certificates import check_authority
from fedpeft.deployment.identity.credentials import Credentials, check_time
from fedpeft.errors import RunError

RECORD, TASK = "fedpeft round record 1", "fedpeft task 1"
"""Kinds of statements: about a round, for all clients, and about what one client receives in it."""


@dataclass(frozen=True)
class SignedStatement:
    """A statement as it travels; without TLS `signature` and `certificate` (DER) are empty."""

    content: bytes
    signature: bytes = b""
    certificate: bytes = b""


def _build_message(kind: str, content: bytes) -> bytes:
    return kind.encode() + b"\n" + content


class Signer:
    """Signs as the server that the credentials belong to.

    Raises:
        RunError: the key is not one that `fedpeft certs` makes.
    """

    def __init__(self, own: Credentials) -> None:
        """Load the key and the certificates."""
        try:
            key = serialization.load_pem_private_key(own.key, None)
            certificate, authority = map(x509.load_pem_x509_certificate, (own.certificate, own.authority))
        except (ValueError, TypeError) as error:
            raise RunError(f"FP5103 the server's key or certificate can't be read: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise RunError(
                "FP5104 the server's key is not on an elliptic curve, which signing rounds needs; make certificates "
                "with fedpeft certs"
            )
        self._key = key
        self._authority = authority
        self._own, self._certificate = certificate, certificate.public_bytes(serialization.Encoding.DER)

    def describe_objection(self) -> str:
        """Return why clients would refuse the certificate now; empty: they accept it."""
        try:
            check_authority(self._authority)
            check_time(self._own, "server")
        except RunError as error:
            return str(error)
        return ""

    def sign(self, kind: str, content: bytes) -> SignedStatement:
        """Return the content as a signed statement of a `kind`.

        Raises:
            RunError: the certificate is outside its validity, so no client would ever accept the statement.
        """
        if why := self.describe_objection():
            raise RunError(f"FP5105 {why}, and continue with fedpeft serve --resume RUN")
        return SignedStatement(
            content, self._key.sign(_build_message(kind, content), ec.ECDSA(hashes.SHA256())), self._certificate
        )


class Verifier:
    """Checks signatures.

    Args:
        trusted: PEM; of an authority, whose servers' signatures count, or of one server.
    """

    def __init__(self, trusted: bytes) -> None:
        """Load the trusted certificate."""
        try:
            self._trusted = x509.load_pem_x509_certificate(trusted)
        except ValueError as error:
            raise RunError(f"FP5106 the certificate to check signatures with can't be read: {error}") from None
        self._keys: dict[bytes, tuple[ec.EllipticCurvePublicKey, datetime, datetime]] = {}

    def check(self, kind: str, statement: SignedStatement, time: int) -> None:
        """Refuse a statement that no server of the authority has signed.

        Args:
            kind: of the statement.
            statement: with its signature.
            time: when it was made, by its own account, in seconds of Unix time.

        Raises:
            RunError: there is no signature, or one that does not count.
        """
        if not statement.signature:
            raise RunError("FP5107 the server sent a round without its signature; with TLS every round has one")
        if statement.certificate not in self._keys:
            self._keys[statement.certificate] = self._load_key(statement.certificate)
        key, begin, end = self._keys[statement.certificate]
        try:
            key.verify(statement.signature, _build_message(kind, statement.content), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise RunError(
                "FP5108 the signature of a round is not the server's: it was forged, or changed later"
            ) from None
        if not begin.timestamp() <= time <= end.timestamp():
            raise RunError(
                f"FP5109 a round was signed at {datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M} UTC, when the "
                f"server's certificate was not valid (from {begin:%Y-%m-%d} to {end:%Y-%m-%d}); check the "
                "clocks of both machines"
            )

    def _load_key(self, der: bytes) -> tuple[ec.EllipticCurvePublicKey, datetime, datetime]:
        try:
            certificate = x509.load_der_x509_certificate(der)
            if certificate != self._trusted:
                certificate.verify_directly_issued_by(self._trusted)
            usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            key = certificate.public_key()
        except Exception as error:
            raise RunError(
                f"FP5110 a round is signed with a certificate that the authority has not made ({type(error).__name__})"
            ) from None
        if ExtendedKeyUsageOID.SERVER_AUTH not in usage or not isinstance(key, ec.EllipticCurvePublicKey):
            raise RunError("FP5111 a round is signed with a certificate of the authority that is not a server's")
        return key, certificate.not_valid_before_utc, certificate.not_valid_after_utc

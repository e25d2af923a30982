"""Certificates of a federation: one authority, one server, a certificate for each client, and their content.

A client's identity is its certificate. The subject contains its name, and so do the alternative names, as
`fedpeft:client/NAME`. So a server's certificate can't be used as a client's. All are valid from a day before they are
made, because clocks may differ by that much.

    FOLDER/ca.pem, ca.key, revoked.pem          the authority; its key belongs on no other machine
    FOLDER/server.pem, server.key               the server
    FOLDER/clients/NAME/ca.pem, client.pem, client.key     what a client is handed
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from filelock import FileLock

from fedpeft.errors import ConfigError, RunError
from fedpeft.machine.files import read, replace

CLIENT_URI = "fedpeft:client/"
CLOCK_SKEW = timedelta(days=1)
AUTHORITY_DAYS = 3650
MOST_COMMON = 64
"""Most characters of a common name. It is not used if there are alternative names, which may be longer."""
HERE = ("localhost", "127.0.0.1")
"""What a server is called that nobody has named."""
HOST_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
"""A part of a host name between dots."""
NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
"""A client's name: lower-case letters, digits, dots, dashes; it becomes a folder's name."""


def check_name(name: str) -> str:
    """Return the name.

    Raises:
        ConfigError: it is not a legal client name.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"FP1113 {name!r} is not a client's name: 1 to 63 lower-case letters, digits, dots, dashes or underscores, "
            "with a letter or digit at both ends"
        )
    return name


def check_host(host: str) -> str:
    """Return the host name or address.

    Raises:
        ConfigError: it is neither.
    """
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        if len(host) > 253 or not all(HOST_LABEL.fullmatch(label) for label in host.split(".")):
            raise ConfigError(
                f"FP1114 {host!r} is neither a host name, such as fl.example.org, nor an address"
            ) from None
        return host


def check_authority(authority: x509.Certificate) -> None:
    """Refuse an expired authority: its signatures count no more, and renewing certificates does not help.

    Raises:
        RunError: it has expired.
    """
    if datetime.now(UTC) > authority.not_valid_after_utc:
        raise RunError(
            f"FP5021 the authority in ca.pem expired on {authority.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and "
            "all certificates with it; whoever runs the server makes a new one in a new folder ("
            "fedpeft certs --folder NEW --server HOST --clients NAMES) and gives each client its new folder"
        )


def name_in(certificate: x509.Certificate) -> str:
    """Return the client's name in a certificate.

    Raises:
        RunError: it is not a client's certificate.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    found = [uri.removeprefix(CLIENT_URI) for uri in uris if uri.startswith(CLIENT_URI)]
    if len(found) != 1 or not NAME.fullmatch(found[0]):
        raise RunError(
            "FP5022 the certificate has no single name of the form fedpeft:client/NAME, so it is not a client's; make "
            "one with fedpeft certs --clients NAME"
        )
    return found[0]


def name_of(certificate: bytes) -> str:
    """Return the client's name in a PEM certificate.

    Raises:
        RunError: it is not a client's certificate.
    """
    return name_in(x509.load_pem_x509_certificate(certificate))


class RevocationList:
    """The serial numbers in an authority's list of revoked certificates; read again when the file changes.

    If the list is removed later, its last content still counts.

    Raises:
        RunError: there is no list, or none of this authority.
    """

    def __init__(self, file: Path, authority: bytes) -> None:
        """Read the list in `file` of the `authority` (PEM)."""
        self._file = file
        self._authority = x509.load_pem_x509_certificate(authority)
        if not file.exists():
            raise RunError(
                f"FP5023 the list of revoked certificates {file} is missing, so the server would accept them "
                "again; restore it from a backup, or make a new authority and new certificates with fedpeft certs"
            )
        self._serials = frozenset(entry.serial_number for entry in _list_of(file, self._authority))
        self._stamp: tuple[int, int] | None = None

    def __contains__(self, serial: object) -> bool:
        """Return whether a certificate is revoked; raise a RunError if the list can't be read."""
        try:
            status = os.stat(self._file)
        except FileNotFoundError:
            return serial in self._serials
        except OSError as error:
            raise RunError(
                f"FP5024 the list of revoked certificates {self._file} can't be read: {error.strerror}; "
                "restore it from a backup"
            ) from None
        if (stamp := (status.st_mtime_ns, status.st_size)) != self._stamp:
            self._serials = frozenset(entry.serial_number for entry in _list_of(self._file, self._authority))
            self._stamp = stamp
        return serial in self._serials


def _list_of(file: Path, authority: x509.Certificate) -> x509.CertificateRevocationList:
    key = authority.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise RunError("FP5025 ca.pem was not made by fedpeft certs; use a ca.pem that it made")
    try:
        found = x509.load_pem_x509_crl(read(file))
        valid = found.is_signature_valid(key)
    except (OSError, ValueError) as error:
        raise RunError(
            f"FP5024 the list of revoked certificates {file} can't be read: {error}; restore it from a backup"
        ) from None
    if not valid:
        raise RunError(
            f"FP5026 the list of revoked certificates {file} is not signed by the authority in ca.pem; restore both "
            "from one backup"
        )
    return found


@dataclass(frozen=True)
class Authority:
    """The authority in a folder; created there if it is new.

    Attributes:
        folder: its home, mode 0700.
        days: how long the certificates that it signs are valid; none outlives the authority.
    """

    folder: Path
    days: float

    def ensure(self) -> bool:
        """Create the authority's key, certificate and empty list if they are missing; return whether it did.

        The key comes last: if it is missing and nothing has been signed, an interrupted attempt is started anew.

        Raises:
            RunError: the key is missing, and certificates that it has signed are here.
        """
        if (self.folder / "ca.key").exists():
            return False
        signed = (self.folder / "server.pem").exists() or any(self.folder.glob("clients/*/client.pem"))
        if signed or self._has_revocation_list():
            raise RunError(
                f"FP5027 {self.folder} holds certificates but not ca.key, their authority's key; restore "
                "ca.key, or start again in another --folder (a new authority would invalidate all certificates "
                "and forget which are revoked)"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
        except OSError as error:
            raise RunError(f"FP5028 {self.folder} can't be made: {error.strerror}") from None
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedpeft authority")])
        usage = {
            "digital_signature": False,
            "content_commitment": False,
            "key_encipherment": False,
            "data_encipherment": False,
            "key_agreement": False,
            "key_cert_sign": True,
            "crl_sign": True,
            "encipher_only": False,
            "decipher_only": False,
        }
        certificate = (
            _create_builder(name, name, key, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .sign(key, hashes.SHA256())
        )
        _clear(self.folder, "ca")
        replace(self.folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM))
        self._write_revoked(certificate, key, [])
        replace(self.folder / "ca.key", _encode_private_key(key), private=True)
        return True

    def _load_own(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        try:
            certificate = x509.load_pem_x509_certificate(read(self.folder / "ca.pem"))
            key = serialization.load_pem_private_key(read(self.folder / "ca.key"), None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it is encrypted
            raise RunError(f"FP5029 the authority in {self.folder} can't be read: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise RunError(f"FP5030 ca.key in {self.folder} is not the key of ca.pem; restore both from one backup")
        return certificate, key

    def is_torn(self, client: str = "") -> bool:
        """Return whether a kill has separated a client's, or the server's, new key from its certificate."""
        folder, role = (self.folder / "clients" / client, "client") if client else (self.folder, "server")
        try:
            certificate = x509.load_pem_x509_certificate(read(folder / f"{role}.pem"))
            key = serialization.load_pem_private_key(read(folder / f"{role}.key"), None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm):  # OSError: one is missing
            return False
        return key.public_key() != certificate.public_key()

    def list_hosts(self) -> list[str]:
        """Return host names and addresses of the server's present certificate; none if there is no certificate.

        Raises:
            RunError: it can't be read.
        """
        file = self.folder / "server.pem"
        if not file.exists():
            return []
        try:
            certificate = x509.load_pem_x509_certificate(read(file))
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, x509.ExtensionNotFound) as error:
            raise RunError(
                f"FP5031 the server's certificate {file} can't be read: {error}; remove it to make a new one"
            ) from None
        return [str(name.value) for name in names]

    def check_certificate(self, name: str) -> Path:
        """Return the file of a client's present certificate.

        Raises:
            RunError: there is none.
        """
        file = self.folder / "clients" / check_name(name) / "client.pem"
        if not file.exists():
            raise RunError(f"FP5032 there is no certificate {file} to revoke")
        return file

    def _has_revocation_list(self) -> bool:
        """Return whether the authority has revoked certificates; an interrupted attempt leaves an empty list."""
        try:
            return len(x509.load_pem_x509_crl(read(self.folder / "revoked.pem"))) > 0
        except (OSError, ValueError):
            return False

    def describe_objection(self, name: str = "") -> str:
        """Return why nobody accepts the present certificate of a client, or of the server; empty: it is valid.

        Raises:
            RunError: it can't be read.
        """
        file = self.folder / "clients" / name / "client.pem" if name else self.folder / "server.pem"
        try:
            certificate = x509.load_pem_x509_certificate(read(file))
        except (OSError, ValueError) as error:
            raise RunError(
                f"FP5033 the certificate {file} can't be read: {error}; remove it to make a new one"
            ) from None
        if datetime.now(UTC) > certificate.not_valid_after_utc:
            return f"expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        if not name:
            return ""
        authority, _ = self._load_own()
        revoked = {entry.serial_number for entry in _list_of(self.folder / "revoked.pem", authority)}
        return "is revoked" if certificate.serial_number in revoked else ""

    def ensure_server(self, hosts: Sequence[str], renew: bool) -> Sequence[str]:
        """Sign a server certificate if there is none, if a crash left half of one, or to `renew` it.

        Without `hosts`, it is for those of the present certificate, or for this machine.

        Returns:
            Host names and addresses of the new certificate; none: the present one is kept.

        Raises:
            RunError: the present certificate can't be read.
        """
        present = self.list_hosts()
        if present and not renew and not self.is_torn():
            return ()
        named = hosts or present or HERE
        self.server(named)
        return named

    def server(self, hosts: Sequence[str]) -> None:
        """Sign a server certificate for host names and addresses."""
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        self._sign(self.folder, "server", hosts[0], names, ExtendedKeyUsageOID.SERVER_AUTH)

    def client(self, name: str) -> Path:
        """Sign a client certificate; return the folder to hand to the client, which is complete once it contains it."""
        folder = self.folder / "clients" / check_name(name)
        authority, _ = self._load_own()
        folder.mkdir(parents=True, exist_ok=True)
        replace(folder / "ca.pem", authority.public_bytes(serialization.Encoding.PEM))
        uri = x509.UniformResourceIdentifier(CLIENT_URI + name)
        self._sign(folder, "client", name, [uri], ExtendedKeyUsageOID.CLIENT_AUTH)
        return folder

    def _sign(
        self, folder: Path, role: str, common: str, names: Sequence[x509.GeneralName], usage: x509.ObjectIdentifier
    ) -> None:
        authority, authority_key = self._load_own()
        check_authority(authority)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:MOST_COMMON])])
        certificate = (
            _create_builder(subject, authority.subject, key, self.days, authority.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
            .sign(authority_key, hashes.SHA256())
        )
        _clear(folder, role)
        replace(folder / f"{role}.key", _encode_private_key(key), private=True)
        replace(folder / f"{role}.pem", certificate.public_bytes(serialization.Encoding.PEM))

    def revoke(self, name: str) -> None:
        """Add a client's present certificate to the list of revoked ones; a running server reads it automatically.

        Raises:
            RunError: there is no such certificate, or the list can't be written.
        """
        file = self.check_certificate(name)
        try:
            serial = x509.load_pem_x509_certificate(read(file)).serial_number
        except (OSError, ValueError) as error:
            raise RunError(f"FP5034 the certificate {file} can't be read: {error}") from None
        authority, key = self._load_own()
        try:
            with FileLock(self.folder / ".lock"):  # another revocation must not be written over
                serials = [entry.serial_number for entry in _list_of(self.folder / "revoked.pem", authority)]
                self._write_revoked(authority, key, sorted({*serials, serial}))
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            raise RunError(
                f"FP5035 {name} is not revoked: the list in {self.folder} can't be written: {error}"
            ) from None

    def _write_revoked(
        self, authority: x509.Certificate, key: ec.EllipticCurvePrivateKey, serials: Sequence[int]
    ) -> None:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(authority.subject)
            .last_update(now - CLOCK_SKEW)
            .next_update(now + timedelta(days=AUTHORITY_DAYS))
        )
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        text = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        replace(self.folder / "revoked.pem", text)


def _create_builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    days: float,
    latest: datetime | None = None,
) -> x509.CertificateBuilder:
    """Return the builder of a certificate that is valid for `days` days, and not beyond `latest`."""
    now = datetime.now(UTC)
    end = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(end if latest is None else min(end, latest))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _encode_private_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain)


def _clear(folder: Path, role: str) -> None:
    """Remove what a kill has left of unfinished files, which may contain keys."""
    for rest in (*folder.glob(f"{role}.*.partial"), *folder.glob("ca.*.partial")):
        rest.unlink(missing_ok=True)

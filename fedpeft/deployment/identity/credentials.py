"""Credentials of one side of a connection: its certificate and key, and the authority that it trusts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from fedpeft.deployment.identity.certificates import check_authority, name_in
from fedpeft.errors import RunError
from fedpeft.machine.files import read

MADE = "use the files of one folder that fedpeft certs made"


@dataclass(frozen=True)
class Credentials:
    """PEM texts: the authority's certificate, one's own certificate and key."""

    authority: bytes
    certificate: bytes
    key: bytes

    @classmethod
    def load_server(cls, folder: Path) -> Credentials:
        """Load the server's credentials from `folder`.

        Raises:
            RunError: they can't be read or used.
        """
        return cls._read(folder, "server")

    @classmethod
    def load_client(cls, folder: Path) -> Credentials:
        """Load a client's credentials from `folder`.

        Raises:
            RunError: they can't be read or used.
        """
        return cls._read(folder, "client")

    @classmethod
    def _read(cls, folder: Path, role: str) -> Credentials:
        contents = []
        for name in ("ca.pem", f"{role}.pem", f"{role}.key"):
            try:
                contents.append(read(folder / name))
            except OSError as error:
                mend = "make certificates with fedpeft certs, and name their folder with --certs"
                if role == "client":  # made here, they would have an authority that the server does not trust
                    mend = (
                        "whoever runs the server makes a client's certificates and hands over their folder, "
                        "certs/clients/NAME: ask for it, and name it with --certs"
                    )
                raise RunError(f"FP5052 {folder / name} can't be read ({error.strerror}); {mend}") from None
        made = cls(*contents)
        made.check(role)
        return made

    def check(self, role: str) -> None:
        """Refuse what the other side would refuse, with a clear reason.

        Raises:
            RunError: no certificate, of another authority, or outside its validity.
        """
        own, authority = _load_certificate(self.certificate, f"{role}.pem"), _load_certificate(self.authority, "ca.pem")
        key = _load_key(self.key, f"{role}.key")
        try:
            own.verify_directly_issued_by(authority)
        except Exception as error:
            raise RunError(
                f"FP5053 the {role}'s certificate is not one that the authority in ca.pem has signed "
                f"({type(error).__name__}); use both from one run of fedpeft certs"
            ) from None
        if own == authority:
            raise RunError(
                f"FP5054 {role}.pem begins with the authority's certificate, and must with the {role}'s; {MADE}"
            )
        if key.public_key() != own.public_key():
            raise RunError(f"FP5055 {role}.key is not the key of {role}.pem: they are of two {role}s; {MADE}")
        check_authority(authority)
        check_time(own, role)
        if role == "client":
            name_in(own)


def check_time(own: x509.Certificate, role: str) -> None:
    """Refuse a certificate outside its validity.

    Raises:
        RunError: it has expired, or is not valid yet.
    """
    now = datetime.now(UTC)
    if now > own.not_valid_after_utc:
        renew = "make a new one with fedpeft certs --renew"
        if role == "client":
            renew = (
                "whoever runs the server makes a new one with fedpeft certs --clients NAME --renew and hands "
                "over its folder"
            )
        raise RunError(
            f"FP5056 the {role}'s certificate expired on {own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; {renew}"
        )
    if now < own.not_valid_before_utc:
        raise RunError(
            f"FP5057 the {role}'s certificate is valid from {own.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on, and this "
            f"machine's clock shows {now:%Y-%m-%d %H:%M}; set the clock"
        )


def describe_exposure(key: Path) -> str:
    """Return what is wrong with the permissions of a file with a key; empty: nothing."""
    mode = key.stat().st_mode & 0o777
    if not mode & 0o004:
        return ""
    return f"{key} can be read by every user of this machine (mode {mode:04o}), who could pose as its owner: chmod 600"


def _load_certificate(text: bytes, file: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(text)
    except ValueError:
        raise RunError(f"FP5058 {file} contains no certificate in PEM (-----BEGIN CERTIFICATE-----); {MADE}") from None


def _load_key(text: bytes, file: str) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(text, None)
    except TypeError:
        raise RunError(f"FP5059 {file} is encrypted with a password, and fedpeft asks for none; {MADE}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise RunError(f"FP5060 {file} contains no private key in PEM (-----BEGIN PRIVATE KEY-----); {MADE}") from None

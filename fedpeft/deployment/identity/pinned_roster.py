"""The roster that a client pins: the certificates of those whose updates its own may be added up with.

    FINGERPRINT NAME          one line for each client, sorted by name

A fingerprint is the SHA-256 of a certificate without its signature. The file's own SHA-256 is its hash. Clients that
compare it with each other, for example by telephone, can be sure that the roster has no stranger.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedpeft.deployment.identity.certificates import NAME, RevocationList, name_in
from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.errors import ConfigError, RunError
from fedpeft.machine.files import read
from fedpeft.privacy.secure_sum.certificates import fingerprint

LINE: Final = re.compile(f"([0-9a-f]{{64}}) ({NAME.pattern})")
SHORTEST_HASH: Final = 16
"""Fewest digits of a hash that are compared: 64 bits."""


@dataclass(frozen=True)
class PinnedRoster:
    """Fingerprints by name."""

    members: Mapping[str, str]

    def to_text(self) -> str:
        """Return the content of the file: equal rosters have equal texts."""
        return "".join(f"{self.members[name]} {name}\n" for name in sorted(self.members))

    @property
    def hash(self) -> str:
        """SHA-256 of the text, in hexadecimal digits."""
        return hashlib.sha256(self.to_text().encode()).hexdigest()

    @classmethod
    def from_authority(cls, folder: Path) -> Self:
        """Return the roster of the clients that the authority in `folder` has certified and not revoked.

        Raises:
            RunError: a file can't be read.
            ConfigError: there are no clients.
        """
        members = {}
        try:
            revoked = RevocationList(folder / "revoked.pem", read(folder / "ca.pem"))
            for file in sorted(folder.glob("clients/*/client.pem")):
                certificate = x509.load_pem_x509_certificate(read(file))
                if certificate.serial_number not in revoked:
                    members[name_in(certificate)] = fingerprint(certificate.public_bytes(Encoding.DER))
        except (OSError, ValueError) as error:
            raise RunError(f"FP5080 the certificates in {folder} can't be read: {error}") from None
        if not members:
            raise ConfigError(
                f"FP1123 there is no client's certificate in {folder}/clients; make some with --clients a,b"
            )
        return cls(members)

    def check_own(self, own: Credentials) -> None:
        """Refuse a roster that lacks the client itself.

        Raises:
            ConfigError: its certificate is not in the roster.
        """
        certificate = x509.load_pem_x509_certificate(own.certificate)
        if fingerprint(certificate.public_bytes(Encoding.DER)) not in self.members.values():
            raise ConfigError(
                f"FP1124 the roster lacks your own certificate ({name_in(certificate)}); it is older than the "
                "certificate, or for other clients, so ask for a new roster"
            )

    @classmethod
    def read(cls, file: Path, expected: str = "") -> Self:
        """Return the roster in a file.

        Args:
            file: as `fedpeft certs --roster` writes it.
            expected: its hash, or at least the first 16 digits of it; empty: any.

        Raises:
            ConfigError: there is none, or it has another hash.
        """
        try:
            lines = read(file).decode().splitlines()
        except (OSError, ValueError) as error:
            raise ConfigError(f"FP1125 the roster {file} can't be read: {error}") from None
        found = [LINE.fullmatch(line) for line in lines]
        members = {match[2]: match[1] for match in found if match}
        if len(members) < len(lines) or len(set(members.values())) < len(members) or not members:
            raise ConfigError(
                f"FP1126 {file} is not a roster, which has a line FINGERPRINT NAME for each client, each once, as "
                "fedpeft certs --roster writes it"
            )
        made = cls(members)
        digits = expected.lower().replace(" ", "").replace(":", "")
        if expected and (len(digits) < SHORTEST_HASH or not made.hash.startswith(digits)):
            raise ConfigError(
                f"FP1127 the roster {file} has the hash {made.hash}, not {expected} (of which {SHORTEST_HASH} "
                "digits or more are compared): it is not the roster that --roster-hash names; ask whoever gave "
                "you the hash"
            )
        return made

"""Authentication of callers of a server of real clients, and a limit on their calls.

A client's name is read from the certificate that gRPC has verified; without TLS it is whatever the client claims. Names
also travel as metadata, so that a client learns if its certificate has another name than it believes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import grpc
from cryptography import x509

from fedpeft.deployment.identity.certificates import NAME, RevocationList, name_in
from fedpeft.deployment.wire.channel import NAME_KEY
from fedpeft.errors import RunError


class RefusedError(Exception):
    """A call that is not served: gRPC's code and one sentence for the client."""

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        """Hold gRPC's `code` and the sentence for the client."""
        super().__init__(sentence)
        self.code = code


def create_dropped_error(reason: str) -> RefusedError:
    """Return the refusal of a client that the server has dropped."""
    return RefusedError(
        grpc.StatusCode.PERMISSION_DENIED,
        f"this client has been dropped: {reason}; after the cause is fixed, whoever runs the server can take it "
        "back with --readmit",
    )


@dataclass
class TokenBucket:
    """A rate limit: `burst` times at once, and then `rate` times a second."""

    rate: float
    burst: float
    level: float = field(init=False)
    stamp: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Begin with a full bucket."""
        self.level = self.burst

    def take(self) -> bool:
        """Take a token, and return whether there was one."""
        now = time.monotonic()
        self.level = min(self.burst, self.level + self.rate * (now - self.stamp))
        self.stamp = now
        if self.level < 1:
            return False
        self.level -= 1
        return True

    def give_back(self) -> None:
        """Give the last token back."""
        self.level = min(self.burst, self.level + 1)


@dataclass(frozen=True)
class Doorkeeper:
    """Reads the names of callers.

    Attributes:
        revoked: serial numbers of revoked certificates; None: no TLS, and claimed names are accepted.
        authority: the certificate (PEM) that signs the clients' certificates; empty: there are none.
    """

    revoked: RevocationList | None
    authority: bytes = b""

    def name(self, identity: Mapping[str, Sequence[bytes]], metadata: Mapping[str, object]) -> str:
        """Return the caller's name.

        Raises:
            RefusedError: no name, another's name, an expired or a revoked certificate.
        """
        claimed = str(metadata.get(NAME_KEY, ""))
        if self.revoked is None:
            if not NAME.fullmatch(claimed):
                raise RefusedError(grpc.StatusCode.UNAUTHENTICATED, f"{claimed[:63]!r} is not a client's name")
            return claimed
        name = self._verify_certificate(identity, self.revoked)
        if claimed and claimed != name:
            raise RefusedError(
                grpc.StatusCode.PERMISSION_DENIED,
                f"the certificate is that of {name}, but the client calls itself {claimed[:63]!r}",
            )
        return name

    def _verify_certificate(self, identity: Mapping[str, Sequence[bytes]], revoked: RevocationList) -> str:
        try:
            certificate = x509.load_pem_x509_certificate(identity["x509_pem_cert"][0])
            name = name_in(certificate)
        except (KeyError, IndexError, ValueError):
            raise RefusedError(grpc.StatusCode.UNAUTHENTICATED, "the connection has no certificate") from None
        except RunError as error:
            raise RefusedError(grpc.StatusCode.UNAUTHENTICATED, str(error)) from None
        if datetime.now(UTC) > certificate.not_valid_after_utc:
            raise RefusedError(
                grpc.StatusCode.UNAUTHENTICATED,
                f"the certificate of {name} has expired; whoever runs the server makes a new one with "
                f"fedpeft certs --clients {name} --renew and hands over its folder",
            )
        try:
            is_revoked = certificate.serial_number in revoked
        except RunError as error:  # a list that can't be read admits nobody
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, str(error)) from None
        if is_revoked:
            raise RefusedError(
                grpc.StatusCode.UNAUTHENTICATED,
                f"the certificate of {name} has been revoked; ask whoever runs the server for a new one",
            )
        return name

"""The messages between members and the coordinator of a secure sum, as bytes.

    keys       public keys (mask, share), commitment to the own seed, signature,
               certificate                                                               member -> coordinator
    peers      id and keys of each neighbor                                              coordinator -> member
    sealed     id and sealed shares, for each neighbor or from each                      both ways
    vector     the masked integers, packed                                               member -> coordinator
    survivors  the ids whose vectors have arrived                                        coordinator -> member
    witness    a member's signature over the survivors                                   member -> coordinator
    witnesses  id and signature of each neighbor                                         coordinator -> member
    shares     id, type of the secret, and the share, for each neighbor                  member -> coordinator

All are records of fixed size after a count, except that signatures and certificates have a length. Messages that do not
fit are rejected.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from fedpeft.errors import PayloadError
from fedpeft.privacy.secure_sum.masks import KEY
from fedpeft.privacy.secure_sum.shamir import SHARE

SEALED: Final = 2 * SHARE + 16
"""Bytes of two shares, encrypted and authenticated."""

LONGEST_SIGNATURE: Final = 144
"""Bytes of the longest signature that a certificate's key makes: ECDSA over P-521."""

SEED, MASK = 0, 1
"""Types of the secret behind a share: the seed of a client's own mask, or the private key of its pairwise masks."""

LONGEST_CERTIFICATE: Final = 4096
"""The most bytes of a certificate; those of `fedpeft certs` have about 500."""

MOST: Final = 100_000
"""The most records in one message."""


@dataclass(frozen=True)
class Keys:
    """The keys that a member advertises.

    Attributes:
        mask: public key of pairwise masks, 32 bytes.
        share: public key that seals shares, 32 bytes.
        commitment: SHA-256 of the seed of its own mask, with which a coordinator checks the seed that shares give.
        signature: signature over all that, in the sum's context.
        certificate: certificate of the signing key, DER; empty in simulations, whose keys everybody knows.
    """

    mask: bytes
    share: bytes
    commitment: bytes
    signature: bytes = b""
    certificate: bytes = b""

    @property
    def signed_content(self) -> bytes:
        """The signed content, without the context and the member's id."""
        return self.mask + self.share + self.commitment

    def to_bytes(self) -> bytes:
        """Return the keys as bytes for the wire."""
        return (
            self.signed_content
            + _prefix_length(self.signature)
            + len(self.certificate).to_bytes(2, "big")
            + self.certificate
        )

    @classmethod
    def of(cls, reader: Reader) -> Self:
        """Read keys from the reader's position."""
        return cls(reader.take(KEY), reader.take(KEY), reader.take(KEY), reader.signature(), reader.certificate())


class Reader:
    """A reader of one message from a peer.

    Raises:
        PayloadError: by each method, if the bytes are not the expected ones.
    """

    def __init__(self, content: bytes, what: str) -> None:
        """Start at the first byte; `what` names the message in errors."""
        self._content, self._at, self._what = memoryview(content), 0, what

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        end = self._at + count
        if end > len(self._content):
            raise PayloadError(
                f"FP6141 {self._what} of a secure sum end after {len(self._content)} bytes, before they are whole"
            )
        taken = bytes(self._content[self._at : end])
        self._at = end
        return taken

    def number(self) -> int:
        """Return the next id or count."""
        (number,) = struct.unpack(">I", self.take(4))
        return int(number)

    def signature(self) -> bytes:
        """Return the next signature, which follows its length."""
        length = self.take(1)[0]
        if length > LONGEST_SIGNATURE:
            raise PayloadError(f"FP6142 {self._what} of a secure sum hold a signature of {length} bytes")
        return self.take(length)

    def certificate(self) -> bytes:
        """Return the next certificate, which follows its length; it may be empty."""
        length = int.from_bytes(self.take(2), "big")
        if length > LONGEST_CERTIFICATE:
            raise PayloadError(f"FP6143 {self._what} of a secure sum hold a certificate of {length} bytes")
        return self.take(length)

    def ids(self) -> Iterable[int]:
        """Read a count, and yield the id of each record, all different; the caller reads the rest of the record."""
        count = self.number()
        if count > MOST:
            raise PayloadError(f"FP6144 {self._what} of a secure sum announce {count} records; {MOST} are the most")
        seen = set[int]()
        for _ in range(count):
            client = self.number()
            if client in seen:
                raise PayloadError(f"FP6145 {self._what} of a secure sum name client {client} twice")
            seen.add(client)
            yield client
        self.end()

    def end(self) -> None:
        """Reject bytes after the end."""
        if self._at != len(self._content):
            raise PayloadError(
                f"FP6146 {self._what} of a secure sum have {len(self._content) - self._at} bytes too many"
            )


def bound_received_bytes(clients: int, neighbours: int) -> int:
    """Return the most bytes that the others in a sum of so many clients send to one client."""
    keys = 3 * KEY + 1 + LONGEST_SIGNATURE + 2 + LONGEST_CERTIFICATE
    return 4 + 4 * clients + min(neighbours + 1, clients) * (4 + max(keys, SEALED))


def read_keys(content: bytes) -> Keys:
    """Parse one member's keys."""
    reader = Reader(content, "keys")
    keys = Keys.of(reader)
    reader.end()
    return keys


def write_peers(peers: Mapping[int, Keys]) -> bytes:
    """Write the keys of several members."""
    return _write_records((client, keys.to_bytes()) for client, keys in peers.items())


def read_peers(content: bytes) -> dict[int, Keys]:
    """Read a message of `write_peers`."""
    reader = Reader(content, "keys")
    return {client: Keys.of(reader) for client in reader.ids()}


def write_sealed(sealed: Mapping[int, bytes]) -> bytes:
    """Write sealed shares, by the id of the other client."""
    return _write_records(sealed.items())


def read_sealed(content: bytes) -> dict[int, bytes]:
    """Read a message of `write_sealed`."""
    reader = Reader(content, "sealed shares")
    return {client: reader.take(SEALED) for client in reader.ids()}


def write_ids(clients: Iterable[int]) -> bytes:
    """Write ids in ascending order, so that equal sets have equal bytes."""
    return _write_records((client, b"") for client in sorted(clients))


def read_ids(content: bytes) -> frozenset[int]:
    """Read a message of `write_ids`."""
    return frozenset(Reader(content, "survivors").ids())


def write_witnesses(signatures: Mapping[int, bytes]) -> bytes:
    """Write signatures, by member."""
    return _write_records((client, _prefix_length(signature)) for client, signature in signatures.items())


def read_witnesses(content: bytes) -> dict[int, bytes]:
    """Read a message of `write_witnesses`."""
    reader = Reader(content, "signatures")
    return {client: reader.signature() for client in reader.ids()}


def write_shares(shares: Mapping[int, tuple[int, bytes]]) -> bytes:
    """Write the type of the secret and the share, by the client whose secret it is."""
    return _write_records((client, bytes([which]) + share) for client, (which, share) in shares.items())


def read_shares(content: bytes) -> dict[int, tuple[int, bytes]]:
    """Read a message of `write_shares`."""
    reader, shares = Reader(content, "shares"), {}
    for client in reader.ids():
        which = reader.take(1)[0]
        if which not in (SEED, MASK):
            raise PayloadError(f"FP6147 a share of a secure sum is of secret {which}; there are {SEED} and {MASK}")
        shares[client] = which, reader.take(SHARE)
    return shares


def _prefix_length(signature: bytes) -> bytes:
    return bytes([len(signature)]) + signature


def _write_records(records: Iterable[tuple[int, bytes]]) -> bytes:
    parts = [struct.pack(">I", client) + content for client, content in records]
    return struct.pack(">I", len(parts)) + b"".join(parts)

"""The announcement of a secure sum, which the server sends to all clients alike before anything is masked."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Self

import numpy as np

from fedpeft.errors import PayloadError
from fedpeft.machine import seeds
from fedpeft.privacy.secure_sum.cohorts import FEWEST
from fedpeft.privacy.secure_sum.integers import Integers
from fedpeft.privacy.secure_sum.neighbours import Terms, degree

if TYPE_CHECKING:
    from fedpeft.privacy.secure_sum.sum import SecureSum

STATISTICS_BITS: Final = 32
"""Bits of the modulus before round 1, whose numbers must be exact and are summed only once."""

LONGEST: Final = 2**32 - 1
"""The most integers in a vector: the terms of a sum store their number in 32 bits."""

_FORMAT: Final = ">16sIIId"


@dataclass(frozen=True)
class Announcement:
    """The announcement of one sum.

    Attributes:
        nonce: 16 bytes, unique to this sum.
        clients: number of clients that are asked, at least 3.
        size: entries of the vector.
        numbers: numbers beside the vector, at least 1.
        clip: the largest norm of a weighted update, above 0.
    """

    SIZE: ClassVar[int] = struct.calcsize(_FORMAT)
    """Bytes of an announcement on the wire."""

    nonce: bytes
    clients: int
    size: int
    numbers: int
    clip: float

    def to_bytes(self) -> bytes:
        """Return the announcement as bytes for the wire."""
        return struct.pack(_FORMAT, self.nonce, self.clients, self.size, self.numbers, self.clip)

    @classmethod
    def of_bytes(cls, content: bytes) -> Self:
        """Parse an announcement from the wire.

        Raises:
            PayloadError: the bytes are not an announcement, or its numbers are not legal.
        """
        try:
            found = cls(*struct.unpack(_FORMAT, content))
        except struct.error:
            raise PayloadError(f"FP6103 {len(content)} bytes announce a secure sum; it takes {cls.SIZE}") from None
        if found.clients < FEWEST or not found.numbers or not 0 < found.clip < math.inf:
            raise PayloadError(
                f"FP6104 a secure sum of {found.clients} clients, {found.numbers} numbers and norm {found.clip:g} is "
                f"announced; legal are at least {FEWEST} clients, 1 number and a norm above 0"
            )
        return found

    def integers(self, secure: SecureSum, round_number: int) -> Integers:
        """Return how contributions become integers.

        Raises:
            PayloadError: the contributions do not fit.
        """
        bits = bits_of(secure, round_number)
        if not secure.fits(self.clients, bits):
            raise PayloadError(
                f"FP6105 a secure sum of {self.clients} clients is announced, which {bits} bits don't hold"
            )
        made = secure.integers(self.clients, bits, self.size, self.numbers, self.clip, round_number)
        if made.length > LONGEST:
            raise PayloadError(
                f"FP6189 a secure sum of {made.length} integers is announced; legal are {LONGEST} at most"
            )
        return made

    def terms(self, secure: SecureSum, seed: int, round_number: int, run: str = "") -> Terms:
        """Return the terms that all members must agree on.

        Args:
            secure: the settings of the sum.
            seed: seed of the run.
            round_number: the round; 0: before round 1.
            run: name of the run and digest of the round's record; empty in simulations.
        """
        return Terms(
            neighbor_count=degree(self.clients, secure.neighbours),
            threshold=secure.threshold,
            bits=bits_of(secure, round_number),
            length=self.integers(secure, round_number).length,
            context=struct.pack(">QI", seed, round_number)
            + self.to_bytes()
            + secure.grid_digest(round_number)
            + run.encode(),
            least=secure.least(self.clients),
        )


def bits_of(secure: SecureSum, round_number: int) -> int:
    """Return the bits of the modulus of a round's sum; round 0 is the sum before round 1."""
    return secure.bits if round_number else STATISTICS_BITS


def signs(seed: int, round_number: int, size: int) -> np.ndarray:
    """Return the signs D1 and D2 of a round, (2, size), +-1."""
    return seeds.create_generator(seed, "signs of a secure sum", round_number).integers(0, 2, (2, size)) * 2.0 - 1.0

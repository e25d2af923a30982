"""What clients add up under masks: a vector on a grid that they have in common, and a few numbers, as integers.

    v = H2 D2 H1 D1 (w u),   q = floor(v / step + uniform) clamped to +-L,   L = (2^(bits - 1) - 1) // n
    step = SPREAD * C / (sqrt(d) L)

u is a client's update of d entries, w its weight, and w u is clipped to the norm C. D1, D2 are signs, and H1,
H2 orthonormal Hadamard transforms of the first and of the last 2^p entries (2^p <= d < 2^(p + 1)): after them entries
are nearly normal, of standard deviation at most sqrt(2) C / sqrt(d), so that hardly any is clamped. Rounding is
unbiased, and as |q| <= L the sum of n clients is below half of the modulus 2^bits: it never wraps.

A number beside the vector is cut into digits that n clients can add up each without a carry:

    x -> round(x / UNIT) + 2^47 = sum_j digit_j 2^(k j),   k = floor(log2((2^bits - 1) / n))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedpeft.communication.codecs.rotate import transform_blocks
from fedpeft.errors import PayloadError, PrivacyError
from fedpeft.privacy.secure_sum.masks import dtype, reduced

SPREAD: Final = 6.0
"""The largest entry of a rotated vector that the grid reaches, in units of C / sqrt(d)."""

FEWEST_LEVELS: Final = 8
"""On either side of zero; below that a client's update would be little but rounding."""

NUMBER_BITS: Final = 48
UNIT: Final = 2.0**-20
"""Numbers are multiples of it."""

LARGEST_NUMBER: Final = 2 ** (NUMBER_BITS - 1) * UNIT
"""2^27, which their sizes stay below."""


def check_fits(clients: int, bits: int) -> None:
    """Refuse a modulus that so many clients' integers don't fit into.

    Raises:
        PrivacyError: says how many bits do.
    """
    if levels(clients, bits) < FEWEST_LEVELS:
        needed = 1 + math.ceil(math.log2(FEWEST_LEVELS * clients + 1))
        raise PrivacyError(
            f"FP7078 integers of {bits} bits are too small for a sum of {clients} clients: each would have "
            f"{levels(clients, bits)} steps on either side of zero; give bits={needed} or more, or a smaller cohort"
        )


def levels(clients: int, bits: int) -> int:
    """Steps on either side of zero that each of so many clients has."""
    return int(2 ** (bits - 1) - 1) // clients


@dataclass(frozen=True)
class Integers:
    """How the contributions of one sum become integers.

    Attributes:
        clients: the most that are added up.
        bits: of the modulus, see `check_fits`.
        size: entries of the vector; 0: there is none.
        numbers: how many there are beside it.
        clip: C.
    """

    clients: int
    bits: int
    size: int
    numbers: int
    clip: float

    @property
    def levels(self) -> int:
        """L."""
        return levels(self.clients, self.bits)

    @property
    def step(self) -> float:
        """Of the grid."""
        return SPREAD * self.clip / (math.sqrt(max(1, self.size)) * self.levels)

    @property
    def length(self) -> int:
        """Integers in all."""
        return self.size + self.numbers * len(self._places)

    @property
    def _digit(self) -> int:
        return int((2**self.bits - 1) // self.clients).bit_length() - 1

    @property
    def _places(self) -> range:
        """The lowest bit of each digit of a number."""
        return range(0, NUMBER_BITS, self._digit)

    def encode(
        self, vector: np.ndarray, numbers: np.ndarray, signs: np.ndarray, rounding: np.random.Generator
    ) -> np.ndarray:
        """A client's integers, (length,), modulo 2^bits.

        Args:
            vector: w u, (size,).
            numbers: (numbers,), clamped to what a number can be.
            signs: D1 and D2, (2, size), of all clients.
            rounding: of the client alone.

        Raises:
            PayloadError: something is not finite.
        """
        if not np.isfinite(numbers).all():
            raise PayloadError("FP6118 the client's update, or its loss, is not finite")
        whole = self.whole(vector, signs, rounding)
        most = 2 ** (NUMBER_BITS - 1) - 1
        shifted = np.clip(np.round(numbers / UNIT), -most, most).astype(np.int64) + most + 1
        digits = [(shifted >> place) & ((1 << self._digit) - 1) for place in self._places]
        together = np.concatenate([whole, *digits]) % 2**self.bits
        return reduced(together.astype(dtype(self.bits)), self.bits)

    def whole(self, vector: np.ndarray, signs: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """The vector as whole numbers of steps, (size,) int64; see `encode`."""
        length = float(np.linalg.norm(vector))
        if not math.isfinite(length):
            raise PayloadError("FP6118 the client's update, or its loss, is not finite")
        turned = rotated(vector * min(1.0, self.clip / length) if length else vector, signs)
        steps = np.floor(turned / self.step + random.random(len(turned)))
        found: np.ndarray = np.clip(steps, -self.levels, self.levels).astype(np.int64)
        return found

    def decode(self, total: np.ndarray, count: int, signs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sum of the vectors, (size,), and those of the numbers, of `count` clients' integers added up."""
        whole, half = total.astype(np.int64), 2 ** (self.bits - 1)
        vector = (whole[: self.size] + half) % 2**self.bits - half
        digits = whole[self.size :].reshape(len(self._places), self.numbers).astype(object)  # sums may pass 2^63
        shifted = sum(row << place for row, place in zip(digits, self._places, strict=True))
        numbers = (shifted - count * 2 ** (NUMBER_BITS - 1)).astype(np.float64) * UNIT
        return turned_back(vector * self.step, signs), numbers


def rotated(vector: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """H2 D2 H1 D1 vector."""
    turned = np.array(vector, dtype=np.float64)
    for part, drawn in zip(_halves(len(turned)), signs, strict=False):
        turned *= drawn
        turned[part] = transform_blocks(turned[part], ((part.stop - part.start,),))
    return turned


def turned_back(vector: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """The inverse of `rotated`."""
    straight = np.array(vector, dtype=np.float64)
    for part, drawn in reversed(list(zip(_halves(len(straight)), signs, strict=False))):
        straight[part] = transform_blocks(straight[part], ((part.stop - part.start,),))
        straight *= drawn
    return straight


def _halves(size: int) -> list[slice]:
    """The first and the last entries, as many as the largest power of two; none of nothing."""
    power = 1 << (size.bit_length() - 1) if size else 0
    return [slice(0, power), slice(size - power, size)] if size else []

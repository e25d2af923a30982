"""The integers that clients add up under masks: a vector on a common grid, and a few numbers.

    v = H2 D2 H1 D1 (w u),   q = floor(v / step + uniform) clamped to +-L,   L = (2^(bits - 1) - 1) // n
    step = SPREAD * C / (sqrt(d) L)

u is a client's update of d entries, w its weight, and w u is clipped to the norm C. D1 and D2 are signs. H1 and H2 are
orthonormal Hadamard transforms of the first and of the last 2^p entries (2^p <= d < 2^(p + 1)). After them entries are
nearly normal, with standard deviation at most sqrt(2) C / sqrt(d), so that hardly any is clamped. Rounding is unbiased.
As |q| <= L, the sum of n clients is below half of the modulus 2^bits: it never wraps.

A number beside the vector is split into digits that n clients can add up without a carry:

    x -> round(x / UNIT) + 2^47 = sum_j digit_j 2^(k j),   k = floor(log2((2^bits - 1) / n))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedpeft.communication.codecs.rotate import transform_blocks
from fedpeft.errors import PayloadError, PrivacyError
from fedpeft.privacy.secure_sum.masks import dtype, reduce_modulo

SPREAD: Final = 6.0
"""The largest entry of a rotated vector that the grid reaches, in units of C / sqrt(d)."""

FEWEST_LEVELS: Final = 8
"""The fewest steps on either side of zero; with fewer, a client's update would be mostly rounding error."""

NUMBER_BITS: Final = 48
UNIT: Final = 2.0**-20
"""The unit of which numbers are multiples."""

LARGEST_NUMBER: Final = 2 ** (NUMBER_BITS - 1) * UNIT
"""The bound of a number's absolute value, 2^27."""


def check_fits(clients: int, bits: int) -> None:
    """Reject a modulus that is too small for the integers of so many clients.

    Raises:
        PrivacyError: the message contains the number of bits that are enough.
    """
    if levels(clients, bits) < FEWEST_LEVELS:
        needed = 1 + math.ceil(math.log2(FEWEST_LEVELS * clients + 1))
        raise PrivacyError(
            f"FP7078 integers of {bits} bits are too small for a sum of {clients} clients: each would have "
            f"{levels(clients, bits)} steps on either side of zero; give bits={needed} or more, or a smaller cohort"
        )


def levels(clients: int, bits: int) -> int:
    """Return the number of steps on either side of zero that each of so many clients has."""
    return int(2 ** (bits - 1) - 1) // clients


@dataclass(frozen=True)
class Integers:
    """The conversion of one sum's contributions to integers.

    Attributes:
        clients: the most clients that are added up.
        bits: bits of the modulus, see `check_fits`.
        size: entries of the vector; 0: there is none.
        numbers: numbers beside the vector.
        clip: C.
    """

    clients: int
    bits: int
    size: int
    numbers: int
    clip: float

    @property
    def levels(self) -> int:
        """L, the number of steps on either side of zero."""
        return levels(self.clients, self.bits)

    @property
    def step(self) -> float:
        """The step of the grid."""
        return SPREAD * self.clip / (math.sqrt(max(1, self.size)) * self.levels)

    @property
    def length(self) -> int:
        """The number of integers in all."""
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
        """Return a client's integers, (length,), modulo 2^bits.

        Args:
            vector: w u, (size,).
            numbers: (numbers,), clamped to the range of a number.
            signs: D1 and D2, (2, size), the same for all clients.
            rounding: source of the rounding, for this client alone.

        Raises:
            PayloadError: a value is not finite.
        """
        if not np.isfinite(numbers).all():
            raise PayloadError("FP6118 the client's update, or its loss, is not finite")
        whole = self.whole(vector, signs, rounding)
        most = 2 ** (NUMBER_BITS - 1) - 1
        shifted = np.clip(np.round(numbers / UNIT), -most, most).astype(np.int64) + most + 1
        digits = [(shifted >> place) & ((1 << self._digit) - 1) for place in self._places]
        together = np.concatenate([whole, *digits]) % 2**self.bits
        return reduce_modulo(together.astype(dtype(self.bits)), self.bits)

    def whole(self, vector: np.ndarray, signs: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return the vector as whole numbers of steps, (size,) int64; see `encode`.

        Raises:
            PayloadError: a value is not finite.
        """
        length = float(np.linalg.norm(vector))
        if not math.isfinite(length):
            raise PayloadError("FP6118 the client's update, or its loss, is not finite")
        turned = rotate(vector * min(1.0, self.clip / length) if length else vector, signs)
        steps = np.floor(turned / self.step + random.random(len(turned)))
        found: np.ndarray = np.clip(steps, -self.levels, self.levels).astype(np.int64)
        return found

    def decode(self, total: np.ndarray, count: int, signs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the sum of the vectors, (size,), and the sums of the numbers, (numbers,).

        Args:
            total: the sum of the clients' integers, (length,).
            count: number of clients in it.
            signs: D1 and D2, (2, size).
        """
        whole, half = total.astype(np.int64), 2 ** (self.bits - 1)
        vector = (whole[: self.size] + half) % 2**self.bits - half
        digits = whole[self.size :].reshape(len(self._places), self.numbers).astype(object)  # sums may pass 2^63
        shifted = sum(row << place for row, place in zip(digits, self._places, strict=True))
        numbers = (shifted - count * 2 ** (NUMBER_BITS - 1)).astype(np.float64) * UNIT
        return rotate_back(vector * self.step, signs), numbers


def rotate(vector: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Return H2 D2 H1 D1 vector, a rotation that spreads large entries over all."""
    turned = np.array(vector, dtype=np.float64)
    for part, drawn in zip(_list_halves(len(turned)), signs, strict=False):
        turned *= drawn
        turned[part] = transform_blocks(turned[part], ((part.stop - part.start,),))
    return turned


def rotate_back(vector: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Return the vector before `rotate`."""
    straight = np.array(vector, dtype=np.float64)
    for part, drawn in reversed(list(zip(_list_halves(len(straight)), signs, strict=False))):
        straight[part] = transform_blocks(straight[part], ((part.stop - part.start,),))
        straight *= drawn
    return straight


def _list_halves(size: int) -> list[slice]:
    """Return the slices of the first and the last 2^p entries, with the largest 2^p <= size; empty for size 0."""
    power = 1 << (size.bit_length() - 1) if size else 0
    return [slice(0, power), slice(size - power, size)] if size else []

"""Signed levels of an adaptive quantizer as symbols: slices of similar magnitude share a stream and a frequency table.

A slice's class is the half octave of its root mean square in units of the step. Class 0 is all zero and not sent; the
others reach from 2^-3 to 2^4. A stream's alphabet is -reach ... reach, where `reach` is the largest level in its class.

Scales (step sizes, block maxima) are two or three bytes each: the high bytes of a float32. Two bytes are a bf16: the
range of fp32, 8 significant bits. The byte planes travel as symbols, so that a packer can exploit similar exponents.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedpeft.communication.payload import Array, Reader
from fedpeft.communication.symbols import Expected, Symbols
from fedpeft.errors import PayloadError

CLASSES: Final = 16


def classify_slices(rms: Array, used: Array) -> Array:
    """Return the class of each slice, given its root mean square in steps; 0 if it is not `used`."""
    octaves = np.log2(np.maximum(rms, 2.0**-9))
    classes = np.clip(np.round(2 * octaves) + 7, 1, CLASSES - 1)
    return np.where(used, classes, 0).astype(np.uint8)


def split_levels(q: Array, classes: Array, sizes: Array, counts: Array | None = None) -> tuple[bytes, list[Symbols]]:
    """Return the reaches of the classes that occur, for a step's parameters, and a stream for each of these classes.

    Args:
        q: levels (n,), int16, slice after slice.
        classes: classes of the slices, from `classify_slices`.
        sizes: entries of each slice.
        counts: (CLASSES, 2 m + 1), the number of each of -m ... m in each class, if it is known.
    """
    reaches, streams = b"", []
    alike = len(sizes) > 0 and bool((sizes == sizes[0]).all())
    rows = q.reshape(len(sizes), -1) if alike else q
    for c in _find_present(classes):
        chosen = classes == c
        values = rows[chosen if alike else np.repeat(chosen, sizes)].reshape(-1)
        known = None
        if counts is None:
            reach = int(max(values.max(), -values.min()))
        else:
            most = counts.shape[1] // 2
            reach = int(np.abs(np.flatnonzero(counts[c]) - most).max())
            known = np.trim_zeros(counts[c, most - reach : most + reach + 1], "b")
        reaches += struct.pack("<H", reach)
        values += np.int16(reach)
        streams.append(Symbols(values.astype(np.uint8 if reach < 128 else np.uint16), 2 * reach + 1, known))
    return reaches, streams


@dataclass(frozen=True)
class ExpectedLevels:
    """The levels that a receiver expects."""

    classes: Array
    sizes: Array
    reaches: tuple[int, ...]

    @classmethod
    def read(cls, parameters: Reader, classes: Array, sizes: Array, most: int, owner: str) -> ExpectedLevels:
        """Read the reaches from a step's parameters, as `split_levels` wrote them.

        Raises:
            PayloadError: a reach exceeds `most`.
        """
        reaches = tuple(parameters.read_integer(2, "reach of a class") for _ in _find_present(classes))
        if any(reach > most for reach in reaches):
            raise PayloadError(f"FP6050 the payload's step {owner} has values beyond {most}")
        return cls(classes, sizes, reaches)

    @property
    def symbols(self) -> tuple[Expected, ...]:
        """The symbols that the packer must deliver."""
        pairs = zip(_find_present(self.classes), self.reaches, strict=True)
        return tuple(Expected(int(self.sizes[self.classes == c].sum()), 2 * reach + 1) for c, reach in pairs)

    def find_places(self) -> list[Array]:
        """Return masks (n,) of the entries of each class."""
        return [np.repeat(self.classes == c, self.sizes) for c in _find_present(self.classes)]

    def values(self, streams: Sequence[Array], dtype: np.dtype[np.generic]) -> list[Array]:
        """Return the levels of each class."""
        return [s.astype(dtype) - dtype.type(r) for s, r in zip(streams, self.reaches, strict=True)]


def _find_present(classes: Array) -> list[int]:
    return [c for c in range(1, CLASSES) if (classes == c).any()]


def scale_words(scales: Array, width: int, *, up: bool) -> Array:
    """Convert scales (n,), at least 0, to words of `width` (2 or 3) bytes, rounded to nearest or, for a bound, up."""
    drop = 32 - 8 * width
    bits = np.minimum(scales, np.float32(3.3e38)).astype(np.float32).view(np.uint32).astype(np.int64)
    words = bits + ((1 << drop) - 1 if up else 1 << (drop - 1)) >> drop
    finite: Array = np.minimum(words, (0x7F800000 >> drop) - 1)
    return finite


def scale_values(words: Array, width: int) -> Array:
    """Return the scales that `scale_words` converted, float32."""
    return (words.astype(np.uint32) << np.uint32(32 - 8 * width)).view(np.float32)


def scale_symbols(words: Array, width: int) -> tuple[Symbols, ...]:
    """Return the words' byte planes, lowest first."""
    return tuple(Symbols((words >> (8 * i) & 255).astype(np.uint8), 256) for i in range(width))


def expect_scales(count: int, width: int) -> tuple[Expected, ...]:
    """Return the symbols that a plan expects for `count` scales."""
    return (Expected(count, 256),) * width


def read_scales(planes: Sequence[Array]) -> Array:
    """Read scales (n,) from their byte planes.

    Raises:
        PayloadError: a scale is negative, infinite or not a number.
    """
    words = sum((plane.astype(np.uint32) << np.uint32(8 * i) for i, plane in enumerate(planes)), np.uint32(0))
    scales = scale_values(np.asarray(words), len(planes))
    if not (np.isfinite(scales).all() and not np.signbit(scales).any()):
        raise PayloadError("FP6051 the payload has a scale that is negative or not finite")
    return scales

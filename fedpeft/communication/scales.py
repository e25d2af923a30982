"""Scales (step sizes, block maxima) as two or three bytes each: the high bytes of a float32.

Two bytes are a bf16: the range of fp32, 8 significant bits. The byte planes travel as symbols, so that a packer can use
how alike the exponents are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedpeft.communication.payload import Array, Expected, Symbols
from fedpeft.errors import PayloadError


def scale_words(scales: Array, width: int, *, up: bool) -> Array:
    """Scales (n,), at least 0, as words of `width` (2 or 3) bytes; rounded up (where a bound must hold) or nearest."""
    drop = 32 - 8 * width
    bits = np.minimum(scales, np.float32(3.3e38)).astype(np.float32).view(np.uint32).astype(np.int64)
    words = bits + ((1 << drop) - 1 if up else 1 << (drop - 1)) >> drop
    finite: Array = np.minimum(words, (0x7F800000 >> drop) - 1)
    return finite


def scale_values(words: Array, width: int) -> Array:
    """The scales that `scale_words` made, float32."""
    return (words.astype(np.uint32) << np.uint32(32 - 8 * width)).view(np.float32)


def scale_symbols(words: Array, width: int) -> tuple[Symbols, ...]:
    """The words' byte planes, lowest first."""
    return tuple(Symbols((words >> (8 * i) & 255).astype(np.uint8), 256) for i in range(width))


def expected_scales(count: int, width: int) -> tuple[Expected, ...]:
    """What a plan asks for, for `count` scales."""
    return (Expected(count, 256),) * width


def read_scales(planes: Sequence[Array]) -> Array:
    """Scales (n,) from their byte planes.

    Raises:
        PayloadError: one is negative, infinite or not a number.
    """
    words = sum((plane.astype(np.uint32) << np.uint32(8 * i) for i, plane in enumerate(planes)), np.uint32(0))
    scales = scale_values(np.asarray(words), len(planes))
    if not (np.isfinite(scales).all() and not np.signbit(scales).any()):
        raise PayloadError("the payload has a scale that is negative or not finite")
    return scales

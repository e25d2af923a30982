"""One bit per value: its sign, times one scale for each tensor (or rotated block).

- mean: x' = sign(x) norm1(x) / n. Least squares; biased; use with error feedback (EF-signSGD, arXiv 1901.09847).
- drive: x' = sign(x) norm2(x)^2 / norm1(x). Unbiased after `rotate` (DRIVE, arXiv 2105.08339, theorem 3, for the
  uniform rotation; nearly so for the Hadamard one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedpeft.communication.levels import expect_scales, read_scales, scale_symbols, scale_words
from fedpeft.communication.payload import Array, Reader, Shape, count_total
from fedpeft.communication.steps import Context, Encoded, Plan, Quantizer, Signal
from fedpeft.communication.symbols import Expected, Symbols
from fedpeft.communication.vectors import count_segment_entries, reduce_segments
from fedpeft.parts import setting


@dataclass(frozen=True)
class Sign(Quantizer):
    """Signs and scales; write `rotate | sign(scale=drive)` for DRIVE."""

    scale: str = setting(
        "mean", "mean: least error; drive: unbiased after a rotation, with more error", choices=("mean", "drive")
    )

    lossless = False

    def encode(self, signal: Signal, context: Context) -> Encoded:
        """Return signs (zero counts as positive) and a 24-bit scale for each segment."""
        x, sizes = signal.values, signal.sizes
        norm1 = reduce_segments(np.add, np.abs(x, dtype=np.float64), sizes)
        if self.scale == "mean":
            scales = norm1 / np.maximum(sizes, 1)
        else:
            squares = reduce_segments(np.add, np.square(x, dtype=np.float64), sizes)
            scales = np.divide(squares, norm1, out=np.zeros_like(norm1), where=norm1 > 0)
        signs = Symbols((x >= 0).astype(np.uint8), 2)
        return Encoded(None, b"", (*scale_symbols(scale_words(scales, 3, up=False), 3), signs))

    @classmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """Read no parameters."""
        sizes = count_segment_entries(shapes)

        def undo(values: Array, symbols: Sequence[Array]) -> Array:
            *planes, signs = symbols
            scales = np.repeat(read_scales(planes).astype(context.dtype), sizes)
            return np.where(signs > 0, scales, -scales)

        return Plan((), (*expect_scales(len(sizes), 3), Expected(count_total(shapes), 2)), undo)


part = Sign

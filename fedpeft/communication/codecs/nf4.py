"""NormalFloat-4: 16 levels at the quantiles of a normal distribution, over absmax blocks of 64.

QLoRA, arXiv 2305.14314, appendix E; the levels are those of its released code. Error bound: half the widest gap, so
|x - x'| <= 0.152 max|x| in each block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedpeft.communication.levels import expect_scales, read_scales, scale_symbols, scale_values, scale_words
from fedpeft.communication.payload import Array, Reader, Shape, count_total
from fedpeft.communication.steps import Context, Encoded, Plan, Quantizer, Signal
from fedpeft.communication.symbols import Expected, Symbols
from fedpeft.communication.vectors import block_sizes, reduce_segments

LEVELS: Final = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
BLOCK: Final = 64


@dataclass(frozen=True)
class NF4(Quantizer):
    """Four bits per value, nearest level; biased."""

    lossless = False

    def encode(self, signal: Signal, context: Context) -> Encoded:
        """Return the nearest of 16 levels for each value, with a 16-bit scale for each block."""
        x = signal.values
        sizes = block_sizes(len(x), BLOCK)
        words = scale_words(reduce_segments(np.maximum, np.abs(x), sizes), 2, up=True)
        scales = np.repeat(scale_values(words, 2).astype(x.dtype), sizes)
        y = np.divide(x, scales, out=np.zeros_like(x), where=scales > 0)
        codes = np.searchsorted((LEVELS[1:] + LEVELS[:-1]) / 2, y).astype(np.uint8)
        return Encoded(None, b"", (*scale_symbols(words, 2), Symbols(codes, len(LEVELS))))

    @classmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """Read no parameters."""
        count = count_total(shapes)
        sizes = block_sizes(count, BLOCK)

        def undo(values: Array, symbols: Sequence[Array]) -> Array:
            *planes, codes = symbols
            scales = np.repeat(read_scales(planes).astype(context.dtype), sizes)
            result: Array = LEVELS.astype(context.dtype)[codes] * scales
            return result

        return Plan((), (*expect_scales(len(sizes), 2), Expected(count, len(LEVELS))), undo)


part = NF4

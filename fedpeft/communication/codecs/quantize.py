"""Uniform scalar quantization with 1 to 8 bits.

    q = floor(x / s + u + 1/2 - h),   x' = (q + h - u) s,   |x - x'| <= s / 2 (nearest, dither), < s (stochastic)

s is the step. h = 0 puts a level on zero (2^bits - 1 levels); h = 1/2 is used for one bit (2 levels). By default the
step is max|x| / (2^(bits-1) - 1) over blocks of 64. (8-bit optimizers, arXiv 2110.02861, also scale each block by its
largest entry, but their levels are not uniform.) With `step` it is c sigma for each tensor, widened if the levels would
not reach max|x|: nothing is ever clipped.

u = 0 is nearest rounding (biased). `stochastic` draws u uniform in (-1/2, 1/2) and forgets it: unbiased, with a mean
square error of at most s^2/4 (QSGD's rounding, arXiv 1610.02132). `dither` subtracts the same u at the receiver, which
draws it from the payload's seed. That is unbiased, with an error uniform in (-s/2, s/2) and independent of x, so s^2/12
(Schuchman 1964).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedpeft.communication.levels import expect_scales, read_scales, scale_symbols, scale_values, scale_words
from fedpeft.communication.payload import Array, Reader, Shape, count_total, encode_varint
from fedpeft.communication.steps import Context, Encoded, Plan, Quantizer, Signal
from fedpeft.communication.symbols import Expected, Symbols
from fedpeft.communication.vectors import block_sizes, count_segment_entries, reduce_segments
from fedpeft.parts import setting

ROUNDINGS: Final = ("nearest", "stochastic", "dither")
"""Codes on the wire are the positions. Append only."""
MAX_BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class Quantize(Quantizer):
    """Uniform levels: `quantize(bits=4)` over absmax blocks, `quantize(step=1.0)` in units of each tensor's sigma."""

    bits: int = setting(8, "bits per value before entropy coding", low=1, high=8)
    step: float | None = setting(
        None, "step in units of the tensor's root mean square; none: absmax blocks", above=0, high=100
    )
    block: int = setting(64, "number of values that share a scale, without `step`", low=8, high=MAX_BLOCK)
    rounding: str = setting("nearest", "nearest is biased; the others are unbiased", choices=ROUNDINGS)

    lossless = False

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Whether the step rounds at random."""
        return self.rounding != "nearest"

    def encode(self, signal: Signal, context: Context) -> Encoded:
        """Return levels, with one scale of 16 bits for each block or tensor."""
        x = signal.values
        sizes = signal.sizes if self.step is not None else block_sizes(len(x), self.block)
        words = scale_words(self._compute_steps(x, sizes), 2, up=True)
        steps = np.repeat(scale_values(words, 2).astype(x.dtype), sizes)
        y = np.divide(x, steps, out=np.zeros_like(x), where=steps > 0)
        rise, reach = _get_grid(self.bits)
        if self.draws:
            y += context.draw_uniform(len(x)) - x.dtype.type(0.5)
        q = np.clip(np.floor(y + x.dtype.type(0.5 - rise)), -reach, reach - 2 * rise)
        levels = (q + reach).astype(np.uint8)
        block = 0 if self.step is not None else self.block
        parameters = bytes((self.bits, ROUNDINGS.index(self.rounding))) + encode_varint(block)
        return Encoded(None, parameters, (*scale_symbols(words, 2), Symbols(levels, _count_symbols(self.bits))))

    def _compute_steps(self, x: Array, sizes: Array) -> Array:
        largest = reduce_segments(np.maximum, np.abs(x), sizes).astype(np.float64)
        steps: Array
        if self.step is not None:
            squares = reduce_segments(np.add, np.square(x, dtype=np.float64), sizes)
            reach = 2 ** (self.bits - 1) - 1 if self.bits > 1 else 0.5
            steps = np.maximum(self.step * np.sqrt(squares / np.maximum(sizes, 1)), largest / reach)
        elif self.bits > 1:
            steps = largest / (2 ** (self.bits - 1) - 1)
        elif self.draws:
            steps = 2 * largest
        else:
            steps = 2 * reduce_segments(np.add, np.abs(x, dtype=np.float64), sizes) / np.maximum(sizes, 1)
        return steps

    @classmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """Read bits, rounding and block length (0: one scale per tensor)."""
        bits = parameters.read_varint("bits", 8, 1)
        rounding = ROUNDINGS[parameters.read_varint("rounding", len(ROUNDINGS) - 1)]
        block = parameters.read_varint("block length", MAX_BLOCK)
        count = count_total(shapes)
        sizes = block_sizes(count, max(block, 8)) if block else count_segment_entries(shapes)

        def undo(values: Array, symbols: Sequence[Array]) -> Array:
            *planes, levels = symbols
            steps = np.repeat(read_scales(planes).astype(context.dtype), sizes)
            rise, reach = _get_grid(bits)
            y = levels.astype(context.dtype) - context.dtype.type(reach - rise)
            if rounding == "dither":
                y -= context.draw_uniform(count) - context.dtype.type(0.5)
            result: Array = y * steps
            return result

        return Plan((), (*expect_scales(len(sizes), 2), Expected(count, _count_symbols(bits))), undo)


def _get_grid(bits: int) -> tuple[float, int]:
    """Return h, and the level number of the lowest level."""
    return (0.5, 1) if bits == 1 else (0.0, 2 ** (bits - 1) - 1)


def _count_symbols(bits: int) -> int:
    return 2 if bits == 1 else 2**bits - 1


part = Quantize

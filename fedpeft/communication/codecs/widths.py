"""Whole bits for each slice, within a budget: reverse water-filling for codes of fixed width.

    minimize sum_t c_t D(b_t)   subject to   sum_t n_t b_t <= budget,   b_t in 0 ... 8

c_t is the importance-weighted energy of slice t (a tensor, row or rank). D(b) is the error of the best uniform
quantizer with 2^b levels on a normal source (J. Max, 1960, table II);
`fedpeft.communication.bit_allocation.allocate_widths` solves the problem.

    q = floor(x / s_b),   x' = (q + 1/2) s_b,   s_b = step_b sigma_t,   q clipped to 2^b levels

A budget that delivers less than a sixteenth of the energy is doubled until it delivers more. Otherwise the size is
known before the values are, which suits `pack` and fixed slots. If the size may vary, `adaptive | rans` has less error
for the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedpeft.communication.bit_allocation import LEAST, SLICINGS, allocate_widths, cut_slices
from fedpeft.communication.entropy import decode_symbols, encode_symbols
from fedpeft.communication.levels import expect_scales, read_scales, scale_symbols, scale_values, scale_words
from fedpeft.communication.payload import Array, Reader, Shape
from fedpeft.communication.steps import Context, Encoded, Plan, Quantizer, Signal
from fedpeft.communication.symbols import Expected, Symbols, compute_packed_size
from fedpeft.communication.vectors import reduce_segments
from fedpeft.parts import setting

STEP: Final = (0.0, 1.596, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308)
"""The best step by width, in sigma."""
DISTORTION: Final = (1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.001041, 0.0003035, 0.0000869)
"""The mean squared error of the best step, in sigma^2."""
SCALE_BITS: Final = 16


@dataclass(frozen=True)
class Widths(Quantizer):
    """Between 0 and 8 bits for each slice; biased."""

    bits: float = setting(2.0, "bits per parameter of the state, all bytes of the payload included", above=0, high=9)
    per: str = setting("rank", "slice that shares a width and a scale: tensor, row, rank", choices=SLICINGS)

    lossless = False

    def encode(self, signal: Signal, context: Context) -> Encoded:
        """Return scales, then one stream of levels for each width; the widths are parameters."""
        cut = cut_slices(signal.shapes, self.per)
        x = cut.gather(signal.values)
        squares = reduce_segments(np.add, np.square(x, dtype=np.float64), cut.sizes)
        words = scale_words(np.sqrt(squares / np.maximum(cut.sizes, 1)), 2, up=False)
        energies = squares
        if signal.weights is not None:
            weighted = x * cut.gather(signal.weights)
            energies = reduce_segments(np.add, np.square(weighted, dtype=np.float64), cut.sizes)
        whole = context.parameters * self.bits
        spent = 8 * (context.spent + 8) + (SCALE_BITS + 6) * len(cut.sizes)
        widths = _choose_widths(max(whole - spent, whole / 4), energies, cut.sizes)
        widths[words == 0] = 0
        sent = words[widths > 0]
        steps = np.zeros(len(cut.sizes))
        steps[widths > 0] = scale_values(sent, 2)
        steps *= np.array(STEP)[widths]
        parameters = bytes((SLICINGS.index(self.per),)) + encode_symbols([Symbols(widths, len(STEP))])
        streams = [*scale_symbols(sent, 2)]
        for b in range(1, len(STEP)):
            if not (widths == b).any():
                continue
            mask = np.repeat(widths == b, cut.sizes)
            q = np.floor(x[mask] / np.repeat(steps[widths == b], cut.sizes[widths == b]))
            streams.append(
                Symbols((np.clip(q, -(2 ** (b - 1)), 2 ** (b - 1) - 1) + 2 ** (b - 1)).astype(np.uint8), 2**b)
            )
        return Encoded(None, parameters, tuple(streams))

    @classmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """Read slicing and widths."""
        cut = cut_slices(shapes, SLICINGS[parameters.read_varint("slicing", len(SLICINGS) - 1)])
        (widths,) = decode_symbols(parameters, (Expected(len(cut.sizes), len(STEP)),))
        present = [b for b in range(1, len(STEP)) if (widths == b).any()]
        expected = tuple(Expected(int(cut.sizes[widths == b].sum()), 2**b) for b in present)

        def undo(values: Array, symbols: Sequence[Array]) -> Array:
            scales = np.zeros(len(cut.sizes))
            scales[widths > 0] = read_scales(symbols[:2])
            y = np.zeros(int(cut.sizes.sum()), context.dtype)
            for b, levels in zip(present, symbols[2:], strict=True):
                mask = np.repeat(widths == b, cut.sizes)
                y[mask] = levels.astype(context.dtype) - context.dtype.type(2 ** (b - 1) - 0.5)
            y *= np.repeat((scales * np.array(STEP)[widths]).astype(context.dtype), cut.sizes)
            return cut.scatter(y)

        return Plan((), (*expect_scales(int(np.count_nonzero(widths)), 2), *expected), undo)


def _choose_widths(budget: float, energies: Array, sizes: Array) -> Array:
    """Return widths within a budget in bits, which is doubled while less than `LEAST` of the energy would arrive."""
    while True:
        widths = _fit_widths(budget, energies, sizes)
        arrives = 1 - np.array(DISTORTION)[widths]
        if not (energies * arrives).sum() < LEAST * energies.sum():
            return widths
        budget *= 2


def _fit_widths(budget: float, energies: Array, sizes: Array) -> Array:
    """Return widths whose packed levels keep to a budget in bits: three or five bits don't fill a word."""
    asked = budget
    while True:
        widths = allocate_widths(energies, sizes, asked, DISTORTION).astype(np.uint8)
        counts = np.bincount(widths, weights=sizes, minlength=len(STEP)).astype(np.int64)
        over = 8 * sum(compute_packed_size(int(counts[b]), 2**b) for b in range(1, len(STEP))) - budget
        if over <= 8 * len(STEP) or asked <= 0:
            return widths
        asked = max(0.0, asked - over)


part = Widths

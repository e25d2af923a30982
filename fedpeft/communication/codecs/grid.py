"""States on a grid, so that each state can be reached exactly from any other that the receiver holds.

    q = sign(x) floor(|x| / s + 1/2 - dead),   x' = q s           the state that the payload represents
    d = q - round(h / s)                                          what it contains, h: the held state (version 0: zeros)

x' depends on x alone and not on h. So a receiver that was away for long gets one difference instead of all those that
it has missed, and ends with the same bits as everybody else. Every x is quantized anew, so errors do not add up:
norm_inf(x - x') <= (1/2 + dead) s, which equals error feedback around the differences on a grid. The fewer entries have
moved since h, the smaller the payload. One step size s serves all entries. The search for it makes the payload from
version 0 take `bits` bits per parameter. With weights a slice of weight w (its root mean square, at most 1) has the
step s / w, to a quarter octave. Put `rans` behind this step.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from fedpeft.communication.bit_allocation import SLICINGS, cut_slices
from fedpeft.communication.entropy import decode_symbols, encode_symbols, estimate_coded_size
from fedpeft.communication.levels import CLASSES, ExpectedLevels, classify_slices, split_levels
from fedpeft.communication.payload import Array, Reader, Shape, compute_checksum, encode_varint
from fedpeft.communication.step_search import REACH, STEPS, StepSearch, compute_relative_steps, decode_ratio
from fedpeft.communication.steps import MAX_VERSION, Context, Encoded, Plan, Quantizer, Signal
from fedpeft.communication.symbols import Expected, Symbols
from fedpeft.communication.vectors import reduce_segments
from fedpeft.errors import ConfigError, PayloadError
from fedpeft.parts import setting


@dataclass(frozen=True)
class Grid(Quantizer):
    """Levels, as differences from those of a state that both ends hold (`reference`); biased."""

    bits: float = setting(
        3.0, "bits per parameter of a payload from version 0, all its bytes included", above=0, high=10
    )
    dead: float = setting(0.08, "how much wider the zero level is on each side, in steps", low=0, below=0.5)
    per: str = setting("rank", "slice that shares a frequency table: tensor, row, rank", choices=SLICINGS)
    step: float | None = setting(None, "a fixed step size, instead of bits", above=0)

    lossless = False
    chains = True

    def encode(self, signal: Signal, context: Context) -> Encoded:
        """Return the levels' differences.

        The parameters are slicing, step size, version and checksum of the held state, and the slices' classes; with
        weights also the slices' relative steps.
        """
        cut = cut_slices(signal.shapes, self.per)
        relative = compute_relative_steps(signal, cut, 1.0)
        unit = _compute_units(relative, cut.sizes, signal.values.dtype)
        y = cut.gather(signal.values) / unit
        search = StepSearch(y, cut.sizes, False, self.dead)
        if self.step is not None:
            step = float(np.float32(max(self.step, search.largest / REACH)))
        else:
            budget = self.bits * context.parameters / 8
            spent = context.spent + 24 + (estimate_coded_size([Symbols(relative, STEPS)]) if relative.any() else 0)
            step = search.meet(max(budget - spent, budget / 4))
        q, _ = search.compute_levels(step, None)
        version, held = context.reference or (0, None)
        if not 0 <= version <= MAX_VERSION:
            raise ConfigError(f"FP1056 the codec step grid needs a version from 0 to 2^62 - 1, got {version}")
        if version and held is not None:
            q = q - _round_to_levels(cut.gather(held) / unit, step)
        d = q.astype(np.int16)
        squares = reduce_segments(np.add, np.square(d, dtype=np.float64), cut.sizes)
        classes = classify_slices(np.sqrt(squares / np.maximum(cut.sizes, 1)), squares > 0)
        reaches, streams = split_levels(d, classes, cut.sizes)
        slicing = SLICINGS.index(self.per) + (len(SLICINGS) if relative.any() else 0)
        parameters = bytes((slicing,)) + struct.pack("<f", step) + encode_varint(version)
        if version and held is not None:
            parameters += compute_checksum(held).to_bytes(4, "little")
        if relative.any():
            parameters += encode_symbols([Symbols(relative, STEPS)])
        return Encoded(None, parameters + encode_symbols([Symbols(classes, CLASSES)]) + reaches, tuple(streams))

    @classmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """Read slicing, step size, held version, relative steps, classes, and the reach of each class that occurs."""
        weighted, per = divmod(parameters.read_varint("slicing", 2 * len(SLICINGS) - 1), len(SLICINGS))
        cut = cut_slices(shapes, SLICINGS[per])
        step = _read_step(parameters)
        version = parameters.read_varint("reference version", MAX_VERSION)
        if context.position:
            raise PayloadError("FP6031 the payload has a transform before its step grid")
        held = context.read_reference(version, parameters, int(cut.sizes.sum())) if version else None
        relative = np.zeros(len(cut.sizes), np.uint8)
        if weighted:
            (relative,) = decode_symbols(parameters, (Expected(len(cut.sizes), STEPS),))
        (classes,) = decode_symbols(parameters, (Expected(len(cut.sizes), CLASSES),))
        expected = ExpectedLevels.read(parameters, classes, cut.sizes, 2 * REACH, "grid")

        def undo(values: Array, symbols: Sequence[Array]) -> Array:
            unit = _compute_units(relative, cut.sizes, context.dtype)
            q = np.zeros(len(unit), context.dtype) if held is None else _round_to_levels(cut.gather(held) / unit, step)
            for mask, d in zip(expected.find_places(), expected.values(symbols, context.dtype), strict=True):
                q[mask] += d
            return cut.scatter(q * context.dtype.type(step) * unit)

        return Plan((), expected.symbols, undo)

    def as_in(self, parameters: Reader) -> Grid:
        """Return the step with the step size of a payload."""
        parameters.read_varint("slicing", 2 * len(SLICINGS) - 1)
        return replace(self, step=_read_step(parameters) or None)


def _read_step(parameters: Reader) -> float:
    (step,) = struct.unpack("<f", parameters.take(4, "step size"))
    if not 0 <= step < inf:
        raise PayloadError(f"FP6032 the payload's step grid has the step size {step}")
    return float(step)


def _compute_units(relative: Array, sizes: Array, dtype: np.dtype[np.generic]) -> Array:
    """Return the step of each entry (n,), slice after slice, in steps of weight 1."""
    return np.repeat(decode_ratio(relative).astype(dtype), sizes)


def _round_to_levels(held: Array, step: float) -> Array:
    """Return the grid points nearest to the held state, clipped to the reach of a payload."""
    if step <= 0:
        return np.zeros_like(held)
    # the path from the start yields no -0, but the checksum of a state distinguishes it from 0
    levels: Array = np.clip(np.rint(held / held.dtype.type(step)), -REACH, REACH) + held.dtype.type(0)
    return levels


part = Grid

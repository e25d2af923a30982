"""Precision where it matters, within a budget: reverse water-filling by entropy-coded step sizes.

With entropy coding, the best allocation is one step size for all entries in units of their importance. Every slice t
gets the same weighted error w_t^2 s_t^2 / 12. Slices below that water level fall to zero and cost nothing (Cover and
Thomas, section 10.3.3). Entropy-coded uniform quantization is within 0.25 bit of the bound (Gish and Pierce 1968).

    s_t = s / w_t,   q = sign(x) floor(|x| / s_t + 1/2 - dead),   x' = sign(q) (|q| - shift(|q|)) s_t

Slices are cut by tensor, row or rank. w_t is the root mean square sensitivity of slice t (all 1 without weights). The
search for s makes the whole payload, header and tables included, take `bits` bits for each parameter of the state.
Slices of similar magnitude share a frequency table (their class, in half octaves), so that the rate follows the energy.
`shift` moves the levels to the centroids of the values that they represent. Put `rans` behind this step.

Nearest levels with a dead zone make an update shorter, by an amount that depends on the distribution of its entries. At
one bit per parameter two to four fifths of the length arrive. The mean of many updates stays as short, while their
other errors average out. With `gain=length` every payload's step is multiplied by norm(x)^2 / <x, x'>, as in EDEN
(arXiv 2108.08842; with one bit, DRIVE, arXiv 2105.08339), by 4 at most. So an update arrives with its length along
itself, whatever optimizer made it. With `gain=none` the decoded update is as close to the single update as possible.

How much of the mean of many updates arrives still depends on the optimizer, at a third of a bit (`tiny`). A client's
error is correlated with what the clients have in common: small common entries fall to zero behind the client's own
larger ones. For LoRA updates of MiniLM (10 clients, 8 steps, two rounds), 0.86 and 0.48 of the true mean arrive along
itself with AdamW and 0.99 with SGD; `small` delivers 0.87 and 1.00. Without the limit of 4, 0.92 and 0.67 of AdamW's
mean arrive, but the squared error of the mean rises from 1.50 and 1.18 to 1.80 and 1.88 times its squared norm. So the
limit stays: the direction is no better (cosine 0.45 to 0.58), and a longer step along it is mostly error.

A budget may be too small to carry a sixteenth of the state, <x, x'> < norm(x)^2 / 16, so that not even a gain of 4
restores a quarter of its length. Such a budget is doubled until it carries enough. Otherwise small adapters, and states
whose entries all have the same magnitude, would arrive as zeros.

`rounding=dither` is unbiased (see `quantize`). For the same error it takes 0.4 to 0.5 bit more at one bit, 0.1 to 0.2
at two and next to nothing from three on. Its step is at most four times the largest entry. So below some budget (0.3
bit for normal entries, one bit for entries that are all alike) payloads take more than `bits`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

import numpy as np

from fedpeft.communication.bit_allocation import SLICINGS, cut_slices
from fedpeft.communication.entropy import decode_symbols, encode_symbols, estimate_coded_size
from fedpeft.communication.levels import CLASSES, ExpectedLevels, split_levels
from fedpeft.communication.payload import Array, Reader, Shape
from fedpeft.communication.step_search import REACH, STEPS, StepSearch, compute_relative_steps, decode_ratio
from fedpeft.communication.steps import Context, Encoded, Plan, Quantizer, Signal
from fedpeft.communication.symbols import Expected, Symbols
from fedpeft.errors import ConfigError, PayloadError
from fedpeft.parts import setting

ROUNDINGS: Final = ("nearest", "dither")
GAINS: Final = ("none", "length")
MAX_GAIN: Final = 4.0
"""The largest gain of `gain=length`: an update that hardly arrives at all is mostly error."""


@dataclass(frozen=True)
class Adaptive(Quantizer):
    """Step sizes by importance, searched to meet a budget."""

    bits: float = setting(2.0, "bits per parameter of the state, all bytes of the payload included", above=0, high=10)
    per: str = setting("rank", "slice that shares a step and a table: tensor, row, rank", choices=SLICINGS)
    dead: float = setting(0.08, "how much wider the zero level is on each side, in steps (nearest)", low=0, below=0.5)
    rounding: str = setting("nearest", "nearest is biased; dither is unbiased", choices=ROUNDINGS)
    gain: str = setting("none", "none: least error; length: an update's mean length arrives (nearest)", choices=GAINS)

    lossless = False

    def __post_init__(self) -> None:
        """Reject gain=length with dither, which has no need of it."""
        if self.gain != "none" and self.draws:
            raise ConfigError(
                "FP1053 adaptive: rounding=dither already keeps an update's length; leave out gain=length"
            )

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Whether the step dithers."""
        return self.rounding == "dither"

    def encode(self, signal: Signal, context: Context) -> Encoded:
        """Return levels by class, one stream each; the parameters contain step, shifts, classes and relative steps."""
        cut = cut_slices(signal.shapes, self.per)
        relative = compute_relative_steps(signal, cut)
        y = cut.gather(signal.values)
        if relative.any():
            y = y / np.repeat(decode_ratio(relative).astype(y.dtype), cut.sizes)
        search = StepSearch(y, cut.sizes, self.draws, self.dead)
        whole = self.bits * context.parameters / 8
        spent = context.spent + estimate_coded_size([Symbols(relative, STEPS)]) + 16
        step = search.meet(max(whole - spent, whole / 4))  # a header larger than the budget must not silence the state
        noise = context.draw_uniform(len(y)) - y.dtype.type(0.5) if self.draws else None
        counts = search.count_levels(step) if step and not self.draws else None
        q, classes = search.compute_levels(step, noise)
        reaches, streams = split_levels(q, classes, cut.sizes, counts)
        shifts, gain = (0, 0), 1.0
        if step and not self.draws:
            shifts, along = _compute_centroids(search, step, decode_ratio(relative))
            gain = _compute_gain(search, step, along, decode_ratio(relative)) if self.gain == "length" else 1.0
        parameters = bytes((SLICINGS.index(self.per), ROUNDINGS.index(self.rounding)))
        parameters += struct.pack("<fbb", step * gain, *shifts)
        parameters += encode_symbols([Symbols(classes, CLASSES), Symbols(relative, STEPS)])
        return Encoded(None, parameters + reaches, tuple(streams))

    @classmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """Read slicing, rounding, step, shifts, classes, relative steps, and the reach of each class that occurs."""
        per = SLICINGS[parameters.read_varint("slicing", len(SLICINGS) - 1)]
        dither = ROUNDINGS[parameters.read_varint("rounding", len(ROUNDINGS) - 1)] == "dither"
        step, *shifts = struct.unpack("<fbb", parameters.take(6, "step and shifts"))
        if not 0 <= step < inf:
            raise PayloadError(f"FP6028 the payload's step adaptive has the step size {step}")
        cut = cut_slices(shapes, per)
        count = len(cut.sizes)
        classes, relative = decode_symbols(parameters, (Expected(count, CLASSES), Expected(count, STEPS)))
        expected = ExpectedLevels.read(parameters, classes, cut.sizes, REACH, "adaptive")

        def undo(values: Array, symbols: Sequence[Array]) -> Array:
            y = np.zeros(int(cut.sizes.sum()), context.dtype)
            noise = context.draw_uniform(len(y)) - context.dtype.type(0.5) if dither else None
            for mask, q in zip(expected.find_places(), expected.values(symbols, context.dtype), strict=True):
                y[mask] = q - noise[mask] if noise is not None else _shift_levels(q, shifts)
            y *= np.repeat((step * decode_ratio(relative)).astype(context.dtype), cut.sizes)
            return cut.scatter(y)

        return Plan((), expected.symbols, undo)


def _compute_centroids(search: StepSearch, step: float, ratios: Array) -> tuple[tuple[int, int], float]:
    """Return how far centroids lie inside their levels, and the part of the state that then arrives.

    The first result has the distances for |q| = 1 and for |q| > 1, in 1/256 of a step. The second is <x, x'> / step^2,
    where x' is decoded with levels so shifted, and `ratios` is x / y of each slice.
    """
    counts, (sums, squared) = search.count_by_size(step), search.compute_moments(step, ratios)
    level = np.arange(len(counts))
    gaps = counts * level - sums
    inside = gaps[1:2].sum() / max(1, counts[1:2].sum()), gaps[2:].sum() / max(1, counts[2:].sum())
    near, far = (int(np.clip(round(256 * float(gap)), -127, 127)) for gap in inside)
    arrives = (level * squared).sum() - squared[1:2].sum() * (near / 256) - squared[2:].sum() * (far / 256)
    return (near, far), float(arrives)


def _compute_gain(search: StepSearch, step: float, arrives: float, ratios: Array) -> float:
    """Return norm(x)^2 / <x, x'>, at most `MAX_GAIN`; 1 if nothing arrives because there is nothing to send.

    Args:
        search: the search for the step.
        step: the step that it returned.
        arrives: <x, x'> / step^2.
        ratios: x / y of each slice.
    """
    whole = float((np.square(ratios) * search.sizes * np.square(search.rms / step)).sum())
    return min(MAX_GAIN, whole / arrives) if arrives > 0 else 1.0


def _shift_levels(q: Array, shifts: Sequence[int]) -> Array:
    size = np.abs(q)
    inside = np.where(size > 1, q.dtype.type(shifts[1] / 256), q.dtype.type(shifts[0] / 256))
    moved: Array = np.copysign(size - np.where(size > 0, inside, q.dtype.type(0)), q)
    return moved


part = Adaptive

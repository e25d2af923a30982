"""The step size of a quantizer that meets a budget of bytes, and the steps of its slices relative to one another."""

from __future__ import annotations

from functools import cached_property
from math import sqrt
from typing import Final

import numpy as np

from fedpeft.communication.bit_allocation import LEAST, Slices
from fedpeft.communication.entropy import PRECISION, coded_size
from fedpeft.communication.levels import CLASSES, classes_of
from fedpeft.communication.payload import Array
from fedpeft.communication.steps import Signal
from fedpeft.communication.symbols import Symbols
from fedpeft.communication.vectors import segment_reduce

STEPS: Final = 64
"""Quarter octaves by which a slice's step may exceed the smallest."""
REACH: Final = 2047
"""Largest |q|."""
GOLDEN_RATIO: Final = 0.6180339887498949
SMALLEST: Final = 1e-30
"""A state whose largest value is below this, or above 1 / this, is sent as zeros."""
_QUARTERS: Final = np.array([1.0, sqrt(sqrt(2)), sqrt(2), sqrt(2) * sqrt(sqrt(2))])  # the same bits everywhere


def ratio(relative: Array) -> Array:
    """2^(code / 4), float64 from exact operations."""
    steps: Array = np.ldexp(_QUARTERS[relative & 3], (relative >> 2).astype(np.int32))
    return steps


def relative_steps(signal: Signal, cut: Slices, largest: float = 0.0) -> Array:
    """The step of each slice in quarter octaves above that of a slice of weight `largest` (0: the largest there is)."""
    relative = np.zeros(len(cut.sizes), np.uint8)
    if signal.weights is None:
        return relative
    squares = segment_reduce(np.add, np.square(cut.gather(signal.weights), dtype=np.float64), cut.sizes)
    w = np.sqrt(squares / np.maximum(cut.sizes, 1))
    largest = largest or w.max(initial=0.0)
    if largest > 0:
        over = np.divide(largest, w, out=np.full_like(w, np.inf), where=w > 0)
        relative = np.clip(np.round(4 * np.log2(over)), 0, STEPS - 1).astype(np.uint8)
    return relative


SAMPLE: Final = 1 << 16
"""Entries on which the step of a much larger state is sought, before it is made exact on all of them."""

LARGE: Final = 1 << 18
"""Entries from which on a state is much larger; smaller ones are searched whole."""

SURELY: Final = 1.5
"""A sample's word counts for the whole where it is so many times what is asked."""


class StepSearch:
    """The step size that meets a budget.

    Args:
        y: entries in units of their slice's step (n,), slice after slice.
        sizes: entries of each slice.
        dither: whether levels are rounded with noise.
        dead: how much wider the zero level is on each side, in steps.
        every: these entries stand for so many times as many.
    """

    def __init__(self, y: Array, sizes: Array, dither: bool, dead: float, every: int = 1) -> None:
        self.y, self.sizes, self.every = y, sizes, every
        self.offset = y.dtype.type(0.5 - dead)
        # a step that depended on the noise that is sent would bias the code: the search has an even noise of its own
        self.probe = (np.arange(len(y)) * GOLDEN_RATIO % 1 - 0.5).astype(y.dtype) if dither else None
        self.magnitudes, self.signs = np.abs(y), np.sign(y).astype(np.int8)
        self.slice_largest = segment_reduce(np.maximum, self.magnitudes, sizes)
        self.largest = float(self.slice_largest.max(initial=0.0))
        self.rms = np.sqrt(segment_reduce(np.add, np.square(y, dtype=np.float64), sizes) / np.maximum(sizes, 1))

    def levels(self, step: float, noise: Array | None) -> tuple[Array, Array]:
        """q of every entry, as floats, and the class of every slice; with dither if there is noise."""
        if step <= 0:
            return np.zeros_like(self.y), np.zeros(len(self.sizes), np.uint8)
        y = self.y / self.y.dtype.type(step)
        if noise is not None:
            q = np.floor(y + noise + y.dtype.type(0.5))
            used = self.rms > 0
        else:
            q = np.copysign(np.floor(np.abs(y) + self.offset), y)
            used = segment_reduce(np.maximum, np.abs(q), self.sizes) > 0
        return np.clip(q, -REACH, REACH), classes_of(self.rms / step, used)

    def cost(self, step: float) -> float:
        """About how many bytes the levels and classes take, tables included."""
        q, classes = self._counted(step)
        reach = int(max(q.max(initial=0), -q.min(initial=0)))
        width = 2 * reach + 1
        joint = np.repeat(classes.astype(np.int32) * width + reach, self.sizes)
        joint += q
        counts = np.bincount(joint, minlength=CLASSES * width).reshape(CLASSES, width)[1:]
        totals = counts.sum(axis=1)
        logs = np.log2(counts, out=np.zeros(counts.shape), where=counts > 0)
        bits = totals * np.log2(np.maximum(totals, 1)) - (counts * logs).sum(axis=1)
        reaches = np.where(counts > 0, np.abs(np.arange(width) - reach), 0).max(axis=1)
        table = 2 * reaches + 1 + (counts * min(1.0, PRECISION / max(1, len(self.y))) >= 128).sum(axis=1)
        raw = totals * np.log2(2 * reaches + 1) / 8
        used = totals > 0
        coded = np.minimum(self.every * bits / 8 + table, self.every * raw)[used].sum() + 4 * np.count_nonzero(used)
        return 1.003 * float(coded) + coded_size([Symbols(classes, CLASSES)])

    def _counted(self, step: float) -> tuple[Array, Array]:
        """What `levels` gives, as int32, in as few passes over the entries as it takes."""
        if step <= 0 or self.probe is not None:
            q, classes = self.levels(step, self.probe)
            return q.astype(np.int32), classes
        of = self.y.dtype.type(step)
        q = np.divide(self.magnitudes, of)
        q += self.offset
        levels = q.astype(np.int32)  # none is negative: towards zero is down
        np.minimum(levels, REACH, out=levels)
        levels *= self.signs
        return levels, classes_of(self.rms / step, np.floor(self.slice_largest / of + self.offset) > 0)

    def meet(self, budget: float) -> float:
        """A step, representable in fp32, whose cost is at most the budget and close to it; 0 for all zeros.

        The budget is doubled as long as less than `LEAST` of the state would arrive.
        """
        if not SMALLEST <= self.largest <= 1 / SMALLEST:
            return 0.0
        finest = 1.001 * self.largest / REACH
        while True:
            step = self._within(budget, finest, 4 * self.largest)
            if step <= np.float32(finest) or self._enough_arrives(step):
                return step
            budget *= 2

    def _enough_arrives(self, step: float) -> bool:
        """Whether `LEAST` of the state does."""
        if len(self.y) >= LARGE and self._sample._arrives(step) >= SURELY * LEAST:
            return True
        return self._arrives(step) >= LEAST

    def _arrives(self, step: float) -> float:
        """<y, y'> / norm(y)^2, about: the energy of what is not sent as zero; 1 with dither, which keeps it; 0 where
        there is none."""
        if self.probe is not None:
            return 1.0
        squares = np.square(self.y, dtype=np.float64)
        energy = float(squares.sum())
        q, _ = self.levels(step, None)
        return float(squares.sum(where=q != 0)) / energy if energy else 0.0

    @cached_property
    def _sample(self) -> StepSearch:
        """The search on about `SAMPLE` entries that lie evenly in the slices."""
        every = len(self.y) // SAMPLE
        ends = -(-np.cumsum(self.sizes) // every)  # of the entries 0, every, 2 every, ... those below a slice's end
        sizes = np.diff(ends, prepend=0)
        return StepSearch(self.y[::every], sizes, self.probe is not None, 0.5 - float(self.offset), every)

    def _within(self, budget: float, low: float, high: float) -> float:
        """The step between two whose cost is at most the budget and close to it, or `low` or `high`."""
        if len(self.y) < LARGE:
            return self._searched(budget, low, high)
        sample = self._sample
        if sample.cost(low) < SURELY * budget and self.cost(low) <= budget:
            return float(np.float32(low))
        step = sample._searched(budget, low, high)
        an_octave, best, before = max(sample.cost(step) - sample.cost(2 * step), 1.0), 0.0, (0.0, 0.0)
        octaves, used = np.log2(high / low), 0.0
        for _ in range(5):  # bytes fall about linearly with the logarithm of the step
            cost = self.cost(step)
            if cost <= budget and (not best or step < best):
                best, used = step, cost
            if 0.995 * budget <= cost <= budget:
                return step
            if before[0] and before[0] != step:
                an_octave = max((before[1] - cost) / np.log2(step / before[0]), 1.0)
            before = step, cost
            coarser = min(octaves, max(-octaves, (cost - 0.998 * budget) / an_octave))
            step = float(np.float32(min(high, max(low, step * 2**coarser))))
        if used > 0.9 * budget:  # or the sample was none of the whole, as of a state that is zero nearly everywhere
            return best
        return self._searched(budget, low, high)

    def _searched(self, budget: float, low: float, high: float) -> float:
        """`_within`, by looking at all entries."""
        dear, cheap = self.cost(low), self.cost(high)
        if dear <= budget:
            return float(np.float32(low))
        for turn in range(12):
            # bytes fall about linearly with the logarithm of the step: interpolate, and halve where that is slow
            place = 0.5 if turn % 3 == 0 or cheap >= budget else min(0.98, max(0.02, (dear - budget) / (dear - cheap)))
            middle = low * (high / low) ** place
            cost = self.cost(middle)
            if cost > budget:
                low, dear = middle, cost
            else:
                high, cheap = middle, cost
                if cost > 0.997 * budget:
                    break
        return float(np.float32(high))

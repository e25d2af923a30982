"""The step size of a quantizer that meets a budget of bytes, and the steps of its slices relative to one another."""

from __future__ import annotations

from functools import cached_property
from math import sqrt
from typing import Any, Final

import numpy as np

from fedpeft.communication.bit_allocation import LEAST, Slices
from fedpeft.communication.entropy import PRECISION, estimate_coded_size
from fedpeft.communication.levels import CLASSES, classify_slices
from fedpeft.communication.payload import Array
from fedpeft.communication.rate_curve import RateCurve, compute_rate_curve
from fedpeft.communication.steps import Signal
from fedpeft.communication.symbols import Symbols, count_symbols, sum_weights
from fedpeft.communication.vectors import reduce_segments

STEPS: Final = 64
"""The number of codes for a slice's step: quarter octaves above the smallest step."""
REACH: Final = 2047
"""The largest |q|."""
GOLDEN_RATIO: Final = 0.6180339887498949
SMALLEST: Final = 1e-30
"""A state whose largest value is below this, or above 1 / this, is sent as zeros."""
_QUARTERS: Final = np.array([1.0, sqrt(sqrt(2)), sqrt(2), sqrt(2) * sqrt(sqrt(2))])  # the same bits everywhere


def decode_ratio(relative: Array) -> Array:
    """Return 2^(code / 4), float64 from exact operations."""
    steps: Array = np.ldexp(_QUARTERS[relative & 3], (relative >> 2).astype(np.int32))
    return steps


def compute_relative_steps(signal: Signal, cut: Slices, largest: float = 0.0) -> Array:
    """Return the step of each slice in quarter octaves above the step of a slice of weight `largest`.

    `largest` 0 is the largest weight of the slices.
    """
    relative = np.zeros(len(cut.sizes), np.uint8)
    if signal.weights is None:
        return relative
    squares = reduce_segments(np.add, np.square(cut.gather(signal.weights), dtype=np.float64), cut.sizes)
    w = np.sqrt(squares / np.maximum(cut.sizes, 1))
    largest = largest or w.max(initial=0.0)
    if largest > 0:
        over = np.divide(largest, w, out=np.full_like(w, np.inf), where=w > 0)
        relative = np.clip(np.round(4 * np.log2(over)), 0, STEPS - 1).astype(np.uint8)
    return relative


BLOCK: Final = 1 << 15
"""Approximate number of entries that are processed at a time, so that results stay in a core's cache."""

LARGE: Final = 1 << 14
"""The fewest entries for which the search begins at the estimate of a sample, not at the limits."""

COUNTING, SUMMING = 2, 4
"""Numbers of places that take turns in counting a level, and in summing its entries.

Adding twice in a row to the same place is slow, for floats more than for integers.
"""

SURELY: Final = 1.5
"""If the sample's estimate for the finest step is below this times the budget, the search checks that step exactly."""


class StepSearch:
    """The search for the step size that meets a budget.

    Args:
        y: entries in units of their slice's step (n,), slice after slice.
        sizes: entries of each slice.
        dither: whether levels are rounded with noise.
        dead: how much wider the zero level is on each side, in steps.
    """

    def __init__(self, y: Array, sizes: Array, dither: bool, dead: float) -> None:
        """Group the slices, and compute their largest entries and root mean squares."""
        self.y, self.sizes = y, sizes
        self.offset = y.dtype.type(0.5 - dead)
        # a step that depended on the payload's noise would bias the code, so the search has an even noise of its own
        self.probe = (np.arange(len(y)) * GOLDEN_RATIO % 1 - 0.5).astype(y.dtype) if dither else None
        self.blocks = _group_slices(sizes)
        turns = np.arange(max((at.stop - at.start for _, at in self.blocks), default=0), dtype=np.int32)
        self._turns = {lanes: turns % lanes for lanes in (COUNTING, SUMMING)}
        self._q, self._counted = np.empty(len(y), np.int16), 0.0  # levels, and the step at which they are
        self._found = np.zeros(0, np.uint8), np.zeros((CLASSES, 1), np.int64)  # classes and counts at that step
        self.slice_largest, squares = np.zeros(len(sizes), y.dtype), np.zeros(len(sizes))
        for of, at in self.blocks:
            self.slice_largest[of] = reduce_segments(np.maximum, np.abs(y[at]), sizes[of])
            squares[of] = reduce_segments(np.add, np.square(y[at], dtype=np.float64), sizes[of])
        self.largest = float(self.slice_largest.max(initial=0.0))
        self.rms = np.sqrt(squares / np.maximum(sizes, 1))

    def compute_levels(self, step: float, noise: Array | None) -> tuple[Array, Array]:
        """Return q of every entry, int16, and the class of every slice; with dither if there is noise.

        The next search for a step overwrites q.
        """
        if step <= 0:
            return np.zeros(len(self.y), np.int16), self._classify(step, noise is not None)
        if noise is not None or self.probe is not None or step != self._counted:
            self._counted = 0.0
            for _, at in self.blocks:
                self._quantize(step, noise, at, self._q[at])
        return self._q, self._classify(step, noise is not None)

    def convert_to_steps(self, step: float, at: slice) -> Array:
        """Return |y| / step of the entries `at`."""
        magnitudes = np.abs(self.y[at])
        magnitudes /= self.y.dtype.type(step)
        return magnitudes

    def _quantize(self, step: float, noise: Array | None, at: slice, out: Array) -> None:
        """Write the levels of the entries `at` into `out`, int16."""
        within = self.largest / step + 1 < REACH
        if noise is not None:
            y = np.divide(self.y[at], self.y.dtype.type(step))
            y += noise[at]
            y += self.y.dtype.type(0.5)
            np.floor(y, out=y)
        else:
            y = self.convert_to_steps(step, at)
            y += self.offset
        if not within:
            np.clip(y, -REACH, REACH, out=y)
        if noise is None:
            _set_signs(y, self.y[at])
        np.copyto(out, y, casting="unsafe")  # towards zero

    def _classify(self, step: float, dither: bool) -> Array:
        if step <= 0:
            return np.zeros(len(self.sizes), np.uint8)
        used = self.rms > 0 if dither else np.floor(self.slice_largest / self.y.dtype.type(step) + self.offset) > 0
        return classify_slices(self.rms / step, used)

    def count_levels(self, step: float) -> Array:
        """Return how often each level -reach ... reach occurs in each class, (CLASSES, 2 reach + 1); step above 0."""
        return self._count_classes(step)[1]

    def _count_classes(self, step: float) -> tuple[Array, Array]:
        if step == self._counted:
            return self._found
        classes, dithers = self._classify(step, self.probe is not None), self.probe is not None
        largest = float(np.floor(self.y.dtype.type(self.largest) / self.y.dtype.type(step) + self.offset)) + 2 * dithers
        reach = min(REACH, int(largest))
        width = 2 * reach + 1
        dtype = _choose_index_type(COUNTING * CLASSES * width)
        zero = classes.astype(dtype) * dtype(width) + dtype(reach)
        lanes = np.multiply(self._turns[COUNTING], CLASSES * width, dtype=dtype, casting="same_kind")
        counts = np.zeros(COUNTING * CLASSES * width, np.int64)
        for of, at in self.blocks:
            self._quantize(step, self.probe, at, self._q[at])
            joint = np.repeat(zero[of], self.sizes[of])
            joint += self._q[at]
            joint += lanes[: len(joint)]
            counts += count_symbols(joint, counts.size)
        self._counted, self._found = step, (classes, counts.reshape(COUNTING, CLASSES, width).sum(axis=0))
        return self._found

    def count_by_size(self, step: float) -> Array:
        """Return how often |q| is 0 ... reach; step above 0."""
        return _fold_signs(self.count_levels(step).sum(axis=0))

    def compute_moments(self, step: float, ratios: Array) -> tuple[Array, Array]:
        """Return, for nearest levels 0 ... reach, the sums of |y| / step of their entries, and of that times ratios^2.

        Args:
            step: above 0.
            ratios: a factor for each slice.
        """
        width = self.count_levels(step).shape[1]
        dtype = _choose_index_type(SUMMING * width)
        lanes = self._turns[SUMMING].astype(dtype) * dtype(width) + dtype(width // 2)
        alike, squares = bool((ratios == 1).all()), np.square(ratios).astype(self.y.dtype)
        sums = np.zeros((2, SUMMING * width))
        for of, at in self.blocks:
            magnitudes, joint = self.convert_to_steps(step, at), self._q[at] + lanes[: at.stop - at.start]
            sums[0] += sum_weights(joint, magnitudes, SUMMING * width)
            if not alike:
                magnitudes *= np.repeat(squares[of], self.sizes[of])
                sums[1] += sum_weights(joint, magnitudes, SUMMING * width)
        plain, squared = (_fold_signs(each.reshape(SUMMING, width).sum(axis=0)) for each in sums)
        return plain, plain if alike else squared

    def estimate_cost(self, step: float) -> float:
        """Estimate the bytes of the levels and classes, tables included."""
        classes, counts = self._count_classes(step)
        counts, width = counts[1:], counts.shape[1]
        reach = width // 2
        totals = counts.sum(axis=1)
        logs = np.log2(counts, out=np.zeros(counts.shape), where=counts > 0)
        bits = totals * np.log2(np.maximum(totals, 1)) - (counts * logs).sum(axis=1)
        reaches = np.where(counts > 0, np.abs(np.arange(width) - reach), 0).max(axis=1)
        table = 2 * reaches + 1 + (counts * min(1.0, PRECISION / max(1, len(self.y))) >= 128).sum(axis=1)
        raw = totals * np.log2(2 * reaches + 1) / 8
        used = totals > 0
        coded = np.minimum(bits / 8 + table, raw)[used].sum() + 4 * np.count_nonzero(used)
        return 1.003 * float(coded) + estimate_coded_size([Symbols(classes, CLASSES)])

    def meet(self, budget: float) -> float:
        """Return a step, representable in fp32, whose cost is close to the budget and within it; 0 for all zeros.

        The budget is doubled while less than `LEAST` of the state would arrive. A step is at most four times the
        largest entry, even if that costs more, as it may with dither.
        """
        if not SMALLEST <= self.largest <= 1 / SMALLEST:
            return 0.0
        finest = 1.001 * self.largest / REACH
        while True:
            step = self._search_step(budget, finest, 4 * self.largest)
            if step <= np.float32(finest) or self._estimate_arriving_energy(step) >= LEAST:
                return step
            budget *= 2

    def _estimate_arriving_energy(self, step: float) -> float:
        """Estimate <y, y'> / norm(y)^2, the share of the energy that is not sent as zero.

        The result may be too low if it is above `LEAST`. It is 1 with dither, which keeps the energy, and 0 for all
        zeros.
        """
        if self.probe is not None:
            return 1.0
        energy = float((self.sizes * np.square(self.rms / step)).sum())
        sizes = self.count_by_size(step)[1:]
        surely = float((sizes * np.square(np.arange(1, len(sizes) + 1) - self.offset)).sum())
        if surely > 1.001 * LEAST * energy:
            return surely / energy
        arrives = 0.0
        for _, at in self.blocks:
            m = self.convert_to_steps(step, at)
            m *= m + self.offset >= 1
            arrives += float(np.square(m, out=m).sum())
        return arrives / energy if energy else 0.0

    @cached_property
    def _curve(self) -> RateCurve:
        ends = 1.001 * self.largest / REACH, 4 * self.largest
        return compute_rate_curve(self.y, self.rms, self.sizes, *ends, float(self.offset), self.probe)

    def _search_step(self, budget: float, low: float, high: float) -> float:
        """Return a step from `low` to `high` whose cost is close to the budget and within it, or one of the two."""
        if len(self.y) < LARGE:
            return self._search_exactly(budget, low, high)
        if self._curve.estimate_size(low) < SURELY * budget and self.estimate_cost(low) <= budget:
            return float(np.float32(low))
        step, an_octave = self._curve.step(0.998 * budget)
        step = float(np.float32(min(high, max(low, step))))
        best, before = 0.0, (0.0, 0.0)
        octaves, used = np.log2(high / low), 0.0
        for _ in range(5):  # bytes fall about linearly with the logarithm of the step
            cost = self.estimate_cost(step)
            if cost <= budget and (not best or step < best):
                best, used = step, cost
            if 0.995 * budget <= cost <= budget:
                return step
            if before[0] and before[0] != step:
                an_octave = max((before[1] - cost) / np.log2(step / before[0]), 1.0)
            before = step, cost
            coarser = min(octaves, max(-octaves, (cost - 0.998 * budget) / an_octave))
            step = float(np.float32(min(high, max(low, step * 2**coarser))))
        if used > 0.9 * budget:  # else the sample was not representative, such as of a state that is mostly zero
            return best
        return self._search_exactly(budget, low, high)

    def _search_exactly(self, budget: float, low: float, high: float) -> float:
        """Return the step whose cost is within the budget, by looking at all entries."""
        dear, cheap = self.estimate_cost(low), self.estimate_cost(high)
        if dear <= budget:
            return float(np.float32(low))
        for turn in range(12):
            # bytes fall about linearly with the logarithm of the step: interpolate, and halve if that is slow
            place = 0.5 if turn % 3 == 0 or cheap >= budget else min(0.98, max(0.02, (dear - budget) / (dear - cheap)))
            middle = low * (high / low) ** place
            cost = self.estimate_cost(middle)
            if cost > budget:
                low, dear = middle, cost
            else:
                high, cheap = middle, cost
                if cost > 0.997 * budget:
                    break
        return float(np.float32(high))


def _choose_index_type(bins: int) -> type[np.signedinteger[Any]]:
    """Return the narrowest type that counts up to `bins` bins; narrower types are faster."""
    return np.int16 if bins < 1 << 15 else np.int32


def _fold_signs(signed: Array) -> Array:
    """Add up values of the levels -reach ... reach for the absolute levels 0 ... reach."""
    reach = len(signed) // 2
    sums: Array = signed[reach:].copy()
    sums[1:] += signed[:reach][::-1]
    return sums


def _set_signs(magnitudes: Array, y: Array) -> None:
    """Give magnitudes (n,) the signs of y (n,), in place."""
    words: Any = np.uint64 if y.dtype == np.float64 else np.uint32
    bits = magnitudes.view(words)
    bits |= y.view(words) & words(1 << 8 * bits.itemsize - 1)


def _group_slices(sizes: Array) -> list[tuple[slice, slice]]:
    """Return runs of whole slices with about `BLOCK` entries, or single slices, each as its slices and its entries."""
    ends, blocks, first = np.cumsum(sizes), [], 0
    while first < len(sizes):
        start = int(ends[first] - sizes[first])
        last = max(first + 1, int(np.searchsorted(ends, start + BLOCK, side="right")))
        blocks.append((slice(first, last), slice(start, int(ends[last - 1]))))
        first = last
    return blocks

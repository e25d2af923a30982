"""An estimate of the bytes of a state at every step size, from a sample: the point where the search for a step begins.

A slice's rate, in bits per entry, depends on its root mean square in steps and on the distribution of its entries. That
distribution comes from a sample of all slices, each divided by its root mean square; the rate is counted at every half
octave. The bytes at a step size are then a sum over slices, and at all step sizes a correlation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from fedpeft.communication.payload import Array
from fedpeft.communication.symbols import count_symbols

SAMPLE: Final = 2048
"""The approximate number of entries in the sample."""
_OCTAVES: Final = np.arange(-16, 5) / 2
"""log2 of a slice's root mean square in steps, for which its rate is counted.

Above, the rate grows by one bit per octave; below, it is 0.
"""
_PER_OCTAVE: Final = 8
_MOST: Final = 255


@dataclass(frozen=True)
class RateCurve:
    """Bytes (m,), without tables, at steps (m,) that fall by eighths of an octave; the bytes never fall."""

    log_steps: Array
    bytes: Array

    def estimate_size(self, step: float) -> float:
        """Estimate the bytes of the levels at a step."""
        return float(np.interp(-np.log2(step), -self.log_steps, self.bytes))

    def step(self, budget: float) -> tuple[float, float]:
        """Return the step whose levels take the budget, and how many bytes one octave more saves."""
        log_step = float(np.interp(budget, self.bytes, self.log_steps))
        step = 2.0**log_step
        return step, max(1.0, self.estimate_size(step / np.sqrt(2)) - self.estimate_size(step * np.sqrt(2)))


def compute_rate_curve(
    y: Array, rms: Array, sizes: Array, low: float, high: float, offset: float, probe: Array | None
) -> RateCurve:
    """Compute the curve between two steps.

    Args:
        y: entries (n,), slice after slice, at least one of them not zero.
        rms: root mean square of each slice.
        sizes: entries of each slice.
        low: the smallest step, above 0.
        high: the largest.
        offset: offset of nearest levels, q = floor(|y| / step + offset).
        probe: (n,), noise of dithered levels, q = floor(y / step + probe + 1/2).
    """
    every = max(1, len(y) // SAMPLE)
    ends = -(-np.cumsum(sizes) // every)  # of the entries 0, every, 2 every, ... those below a slice's end
    unit = np.repeat(rms, np.diff(ends, prepend=0))
    inside = unit > 0
    z = (y[::every][inside] / unit[inside]).astype(np.float32)
    rates = _compute_rates(z, offset, None if probe is None else probe[::every][inside])
    places = np.round(_PER_OCTAVE * np.log2(rms[rms > 0])).astype(np.int64)
    entries = np.bincount(places - places.min(), weights=sizes[rms > 0])
    first, last = (round(_PER_OCTAVE * float(np.log2(step))) for step in (low / 1.1, high * 1.1))
    over = (places.min() - last + np.arange(len(entries) + last - first)) / _PER_OCTAVE
    bits = np.interp(over, _OCTAVES, rates) + np.maximum(over - _OCTAVES[-1], 0)
    spent = np.correlate(bits, entries, "valid") / 8
    return RateCurve((last - np.arange(len(spent))) / _PER_OCTAVE, np.maximum.accumulate(spent))


def _compute_rates(z: Array, offset: float, probe: Array | None) -> Array:
    """Compute the entropy of the levels of z (n,), in bits per entry, at each of `_OCTAVES`."""
    scaled = (z if probe is not None else np.abs(z)) * np.exp2(_OCTAVES).astype(np.float32)[:, None]
    scaled += offset if probe is None else probe.astype(np.float32) + np.float32(0.5)
    levels = np.clip(np.floor(scaled, out=scaled), -_MOST, _MOST, out=scaled).astype(np.int16)
    reach = int(max(levels.max(initial=0), -levels.min(initial=0)))
    rows, width = len(_OCTAVES), 2 * reach + 1
    joint = levels + (np.arange(rows, dtype=np.int16) * width + reach)[:, None]
    counts = count_symbols(joint.reshape(-1), rows * width).reshape(rows, width)
    logs = np.log2(counts, out=np.zeros(counts.shape), where=counts > 0)
    count = max(1, len(z))
    entropy = np.log2(count) - (counts * logs).sum(axis=1) / count
    signs = 0.0 if probe is not None else counts[:, reach + 1 :].sum(axis=1) / count  # about as many up as down
    rates: Array = entropy + signs
    return rates

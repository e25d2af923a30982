"""Adaptive precision across entries: where the bits of a payload go.

Minimize sum_t c_t 2^(-2 b_t) subject to sum_t n_t b_t = budget, over slices t of n_t entries whose importance-weighted
energy is c_t. The solution is b_t = budget / n + (log2(c_t / n_t) - average) / 2, clipped to the legal widths and
solved again for the rest: reverse water-filling (Cover and Thomas, section 10.3.3).

`fedpeft.communication.precision_rule` changes precision over time and across clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np
import torch

from fedpeft.communication.payload import Array, Shape, count_entries
from fedpeft.communication.vectors import count_segment_entries
from fedpeft.peft.adapter import Layout, State

Slicing = Literal["tensor", "row", "rank"]
SLICINGS: Final[tuple[Slicing, ...]] = ("tensor", "row", "rank")
"""Types of slices, whose positions are the codes on the wire. Append only.

A slice is a tensor; a row of a matrix; or the entries of a LoRA factor that belong to one rank (rows of A, columns of
B), that is along the shorter side.
"""

FLOOR: Final = 0.1
"""Least sensitivity, relative to the average, so that no entry stays worthless forever (B = 0 in the first round)."""

LEAST: Final = 1 / 16
"""Least part of a state, <x, x'> / norm(x)^2, that a codec of single entries delivers, whatever its budget.

With less than that, not even a gain of 4 delivers a quarter of the length.
"""


def compute_sensitivity(state: State, layout: Layout) -> State:
    """Return how much an error in each entry changes dW = scale B A, up to a common factor, for `Codec.encode`.

    For entry (u, v) of B it is norm(A_v,:), for entry (u, v) of A it is norm(B_:,u); for all other tensors 1. Within
    the LoRA factors it is divided by its root mean square and floored at 0.1. The importance of an update's entry is
    its magnitude times this.

    Args:
        state: the adapter, best after training.
        layout: the layout of that state.
    """
    weights = {name: torch.ones_like(tensor, dtype=torch.float32) for name, tensor in state.items()}
    names = []
    for pair in layout.pairs:
        if pair.A in state and pair.B in state:
            down, up = state[pair.A].float(), state[pair.B].float()
            weights[pair.A] = up.norm(dim=0)[:, None].expand_as(down).clone()
            weights[pair.B] = down.norm(dim=1)[None, :].expand_as(up).clone()
            names += [pair.A, pair.B]
    squares = sum(float(weights[name].double().square().sum()) for name in names)
    scale = (squares / max(1, sum(weights[name].numel() for name in names))) ** 0.5
    for name in names:
        weights[name] = (weights[name] / scale).clamp(min=FLOOR) if scale > 0 else torch.ones_like(weights[name])
    return weights


@dataclass(frozen=True)
class Slices:
    """The division of a vector of segments into slices.

    Attributes:
        turned: matrices whose columns are slices: where each begins, its rows and its columns. Everything else lies
            slice after slice.
        sizes: entries of each slice.
    """

    turned: tuple[tuple[int, int, int], ...]
    sizes: Array

    def gather(self, values: Array) -> Array:
        """Return `values` in the order of slices."""
        if not self.turned:
            return values
        result = values.copy()
        for start, rows, columns in self.turned:
            place = slice(start, start + rows * columns)
            result[place].reshape(columns, rows)[...] = values[place].reshape(rows, columns).T
        return result

    def scatter(self, values: Array) -> Array:
        """Return values in their original order, the inverse of `gather`."""
        back = tuple((start, columns, rows) for start, rows, columns in self.turned)
        return Slices(back, self.sizes).gather(values)


@lru_cache(maxsize=16)
def cut_slices(shapes: tuple[Shape, ...], per: Slicing) -> Slices:
    """Return the slices of segments of these shapes; only matrices are cut."""
    if per == "tensor":
        return Slices((), count_segment_entries(shapes))
    sizes: list[int] = []
    turned: list[tuple[int, int, int]] = []
    start = 0
    for shape in shapes:
        if len(shape) != 2:
            sizes.append(count_entries(shape))
        elif per == "rank" and shape[1] < shape[0]:
            sizes += [shape[0]] * shape[1]
            turned.append((start, *shape))
        else:
            sizes += [shape[1]] * shape[0]
        start += count_entries(shape)
    return Slices(tuple(turned), np.array(sizes, np.int64))


def allocate_real_widths(energies: Array, sizes: Array, budget: float, high: float = 8.0) -> Array:
    """Compute real widths b_t in [0, high], in bits per entry, that minimize sum c_t 2^(-2 b_t) within a budget.

    The constraint is sum n_t b_t = budget.

    Args:
        energies: c_t, at least 0; slices without energy get no bits.
        sizes: n_t, at least 1.
        budget: bits for all entries together, at least 0; what exceeds `high` everywhere stays unspent.
        high: the widest legal width.
    """
    n = np.asarray(sizes, np.float64)
    density = np.divide(energies, n, where=n > 0, out=np.zeros_like(n))
    level = np.full(len(n), -np.inf)
    np.log2(density, out=level, where=density > 0)
    widths = np.zeros(len(n))
    open_ = np.isfinite(level)
    full = np.zeros(len(n), bool)
    while open_.any():
        left = budget - high * n[full].sum()
        average = (n[open_] * level[open_]).sum() / n[open_].sum()
        b = left / n[open_].sum() + (level[open_] - average) / 2
        low, over = b < 0, b > high
        if not (low.any() or over.any()):
            widths[open_] = b
            break
        places = np.flatnonzero(open_)
        # clip the side with the larger violation first: clipping one side moves the water level away from the other
        if (-b[low] * n[open_][low]).sum() >= ((b[over] - high) * n[open_][over]).sum():
            open_[places[low]] = False
        else:
            open_[places[over]] = False
            full[places[over]] = True
    widths[full] = high
    return widths


def allocate_widths(energies: Array, sizes: Array, budget: float, distortions: Sequence[float]) -> Array:
    """Compute whole widths within the budget: real widths rounded down, then the most valuable bits for their price.

    Args:
        energies: c_t, at least 0.
        sizes: n_t.
        budget: bits for all entries together.
        distortions: D_b for b = 0, 1, ...: mean squared error of a width on a unit-variance source, falling and convex.
    """
    n = np.asarray(sizes, np.int64)
    high = len(distortions) - 1
    widths = np.floor(allocate_real_widths(energies, n, budget, high) + 1e-9).astype(np.int64)
    left = budget - float((n * widths).sum())
    gains = np.append(-np.diff(distortions), 0.0)
    density = np.asarray(energies, np.float64) / np.maximum(n, 1)
    while True:
        value = np.where((n <= left) & (widths < high), density * gains[widths], 0.0)
        best = int(np.argmax(value)) if len(value) else 0
        if not len(value) or value[best] <= 0:
            return widths
        widths[best] += 1
        left -= float(n[best])

"""Random signs, then an orthonormal Hadamard transform, which spreads every value over its block.

    y = H D x,   H H^T = I,   D = diag(+-1) from the payload's seed;   x = D H y

Afterwards the values of a block are nearly normal, whatever they were before. That makes one-bit and few-bit codes
unbiased or tight (DRIVE, arXiv 2105.08339; EDEN, arXiv 2108.08842). A tensor is cut into blocks whose lengths are
powers of two, so nothing is padded: as many of the largest as fit, then the binary digits of the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedpeft.communication.payload import Array, Reader, Shape, count_entries
from fedpeft.communication.steps import Context, Encoded, Plan, Signal, Transform
from fedpeft.communication.vectors import count_segment_entries, reduce_segments
from fedpeft.errors import ConfigError
from fedpeft.parts import setting

SMALLEST: Final = 6
LARGEST: Final = 20
NEAR: Final = 64
IN_CACHE: Final = 1 << 14
"""Approximate number of entries that are processed at a time."""


@dataclass(frozen=True)
class Rotate(Transform):
    """A seeded rotation of each tensor, block by block."""

    block: int = setting(4096, "length of the largest blocks, a power of two", low=2**SMALLEST, high=2**LARGEST)

    draws = True

    def __post_init__(self) -> None:
        """Check that the block length is a power of two."""
        if self.block & (self.block - 1):
            raise ConfigError(f"FP1057 codec step rotate: block must be a power of two, got {self.block}")

    lossless = False  # exact but for rounding

    def encode(self, signal: Signal, context: Context) -> Encoded:
        """Return the rotated values, in segments of one block each; weights become the blocks' root mean squares."""
        shapes = _cut_blocks(signal.shapes, self.block)
        rotated = transform_blocks(signal.values * context.draw_signs(len(signal.values)), shapes)
        weights = signal.weights
        if weights is not None:
            sizes = count_segment_entries(shapes)
            squares = reduce_segments(np.add, np.square(weights), sizes)
            weights = np.repeat(np.sqrt(squares / np.maximum(sizes, 1)), sizes)
        return Encoded(Signal(rotated, shapes, weights), bytes((self.block.bit_length() - 1,)))

    @classmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """Read the base-2 logarithm of the largest block."""
        blocks = _cut_blocks(shapes, 1 << parameters.read_varint("block exponent", LARGEST, SMALLEST))

        def undo(values: Array, symbols: Sequence[Array]) -> Array:
            return transform_blocks(values, blocks) * context.draw_signs(len(values))

        return Plan(blocks, (), undo)


def _cut_blocks(shapes: tuple[Shape, ...], largest: int) -> tuple[Shape, ...]:
    def cut() -> Iterator[Shape]:
        for shape in shapes:
            full, tail = divmod(count_entries(shape), largest)
            yield from [(largest,)] * full
            yield from ((1 << bit,) for bit in reversed(range(tail.bit_length())) if tail >> bit & 1)

    return tuple(cut())


def transform_blocks(values: Array, blocks: tuple[Shape, ...]) -> Array:
    """Return the orthonormal transform of each block; blocks of one length are transformed together."""
    lengths = count_segment_entries(blocks)
    starts = np.cumsum(lengths) - lengths
    result = np.empty_like(values)
    for length in np.unique(lengths).tolist():
        of_one_length = starts[lengths == length]
        neighbours = np.split(of_one_length, np.flatnonzero(np.diff(of_one_length) != length) + 1)
        runs = [slice(int(run[0]), int(run[-1]) + length) for run in neighbours]
        x = np.concatenate([values[run] for run in runs])
        _transform(x, length)
        end = 0
        for run in runs:
            begin, end = end, end + run.stop - run.start
            result[run] = x[begin:end]
    return result


def _transform(x: Array, length: int) -> None:
    """Transform blocks of one length orthonormally, in place.

    Butterflies between near entries go along the columns of the transpose, so that each adds whole rows.
    """
    near = min(length, NEAR)
    scale = x.dtype.type(1 / np.sqrt(float(length)))
    most = min(len(x), max(length, IN_CACHE))
    one, other = np.empty((2, most), x.dtype)
    for start in range(0, len(x), most):
        chunk = x[start : start + most]
        one, other = one[: len(chunk)], other[: len(chunk)]
        one.reshape(near, -1)[...] = chunk.reshape(-1, near).T
        one, other = _apply_butterflies(one, other, len(chunk) // near, len(chunk))
        other.reshape(-1, near)[...] = one.reshape(near, -1).T
        one, other = _apply_butterflies(other, one, near, length)
        np.multiply(one, scale, out=chunk)


def _apply_butterflies(x: Array, other: Array, half: int, length: int) -> tuple[Array, Array]:
    """Compute sums and differences of halves, of `half` entries each, then of twice as many, up to `length`.

    Return the result, and the other array, which is free again.
    """
    while half < length:
        pairs, into = x.reshape(-1, 2, half), other.reshape(-1, 2, half)
        np.add(pairs[:, 0], pairs[:, 1], out=into[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=into[:, 1])
        x, other, half = other, x, 2 * half
    return x, other


part = Rotate

"""Random signs, then an orthonormal Hadamard transform: spreads every value over its block.

    y = H D x,   H H^T = I,   D = diag(+-1) from the payload's seed;   x = D H y

After it the values of a block are nearly normal whatever they were, which is what makes one-bit and few-bit codes
unbiased or tight (DRIVE, arXiv 2105.08339; EDEN, arXiv 2108.08842). A tensor is cut into blocks whose lengths are
powers of two, so nothing is padded: as many of the largest as fit, then the binary digits of the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedpeft.communication.payload import Array, Reader, Shape, size
from fedpeft.communication.steps import Context, Encoded, Plan, Signal, Transform
from fedpeft.communication.vectors import segment_reduce, segment_sizes
from fedpeft.errors import ConfigError
from fedpeft.parts import setting

SMALLEST: Final = 6
LARGEST: Final = 20


@dataclass(frozen=True)
class Rotate(Transform):
    """A seeded rotation of each tensor, block by block."""

    block: int = setting(4096, "length of the largest blocks, a power of two", low=2**SMALLEST, high=2**LARGEST)

    draws = True

    def __post_init__(self) -> None:
        if self.block & (self.block - 1):
            raise ConfigError(f"codec step rotate: block must be a power of two, got {self.block}")

    lossless = False  # exact but for rounding

    def encode(self, signal: Signal, context: Context) -> Encoded:
        """The rotated values, in segments of one block each; weights become the blocks' root mean squares."""
        shapes = _blocks(signal.shapes, self.block)
        rotated = hadamard(signal.values * context.signs(len(signal.values)), shapes)
        weights = signal.weights
        if weights is not None:
            sizes = segment_sizes(shapes)
            squares = segment_reduce(np.add, np.square(weights), sizes)
            weights = np.repeat(np.sqrt(squares / np.maximum(sizes, 1)), sizes)
        return Encoded(Signal(rotated, shapes, weights), bytes((self.block.bit_length() - 1,)))

    @classmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """Base-2 logarithm of the largest block."""
        blocks = _blocks(shapes, 1 << parameters.varint("block exponent", LARGEST, SMALLEST))

        def undo(values: Array, symbols: Sequence[Array]) -> Array:
            return hadamard(values, blocks) * context.signs(len(values))

        return Plan(blocks, (), undo)


def _blocks(shapes: tuple[Shape, ...], largest: int) -> tuple[Shape, ...]:
    def cut() -> Iterator[Shape]:
        for shape in shapes:
            full, tail = divmod(size(shape), largest)
            yield from [(largest,)] * full
            yield from ((1 << bit,) for bit in reversed(range(tail.bit_length())) if tail >> bit & 1)

    return tuple(cut())


def hadamard(values: Array, blocks: tuple[Shape, ...]) -> Array:
    """The orthonormal transform of each block; blocks of one length go together."""
    lengths = segment_sizes(blocks)
    starts = np.cumsum(lengths) - lengths
    result = np.empty_like(values)
    for length in np.unique(lengths):
        index = starts[lengths == length][:, None] + np.arange(length)
        x = values[index]  # (blocks, length)
        half = 1
        while half < length:
            pairs = x.reshape(-1, length // (2 * half), 2, half)
            x = np.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), axis=2)
            half *= 2
        result[index] = x.reshape(-1, length) * values.dtype.type(1 / np.sqrt(float(length)))
    return result


part = Rotate

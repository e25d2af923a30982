"""Scalars: an update that is a sum of known directions travels as its coefficients (Li et al., DeComFL, arXiv
2405.15861).

    x = sum_t c_t z_t,   z_t random signs (n,) from the payload's seed, t = 1 .. T;   c = (Z Z^T)^-1 Z x,   x' = Z^T c

Both ends draw the directions, so T numbers travel, whatever n is. The local optimizer `zeroth_order` moves a client
along the same directions: with plain steps at one learning rate its update is such a sum, and x' = x but for rounding.
For any other update, x' is the projection to T random directions, which holds a share of about T / n of its squared
length: next to nothing arrives.

Take as many `steps` as a client makes in a round, or more. A client that makes fewer steps sends zeros for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from fedpeft.communication.payload import Array, Reader, Shape, count_total, encode_varint
from fedpeft.communication.steps import Context, Encoded, Plan, Signal, Transform
from fedpeft.parts import setting

MOST = 256
BLOCK = 1 << 16
"""Entries whose products are added up in fp32."""

STREAM = 1 << 32
"""Added to a direction's number: the streams of a codec's steps are those of their positions, which are small."""


def direction(seed: int, number: int, entries: int) -> Array:
    """Return the signs z (entries,) of a direction, int8: the same for ever for the same seed, below 2^64, and number.

    The first entries are the same for any length.
    """
    generator = np.random.Philox(key=np.array([seed, STREAM + number], np.uint64))
    bits = generator.random_raw(-(-entries // 64)).astype("<u8", copy=False).view(np.uint8)
    return 1 - 2 * np.unpackbits(bits, count=entries, bitorder="little").view(np.int8)


def compute_gram(Z: Array) -> Array:
    """Return Z Z^T, (T, T) in fp64, exactly: for signs Z (T, n), int8, sums in a block are whole numbers in fp32."""
    gram = np.zeros((len(Z), len(Z)))
    for start in range(0, Z.shape[1], BLOCK):
        block = Z[:, start : start + BLOCK].astype(np.float32)
        gram += block @ block.T
    return gram


@dataclass(frozen=True)
class Scalars(Transform):
    """One coefficient for each of a few directions that both ends know."""

    steps: int = setting(10, "T: directions, and numbers that travel", low=1, high=MOST)

    draws = True
    lossless = False

    def encode(self, signal: Signal, context: Context) -> Encoded:
        """Return the coefficients, (T,), of the nearest sum of directions; at most one for each entry."""
        entries = len(signal.values)
        count = min(self.steps, entries)
        Z = np.zeros((count, entries), np.int8)
        for t in range(count):
            Z[t] = direction(context.seed, t, entries)
        goal = np.array([float(np.dot(z.astype(signal.values.dtype), signal.values)) for z in Z])
        found = scipy.linalg.lstsq(compute_gram(Z), goal, check_finite=False)[0] if count else goal
        return Encoded(Signal(found.astype(signal.values.dtype), ((count,),)), encode_varint(count))

    @classmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """Read the number of directions, and undo by their sum."""
        entries = count_total(shapes)
        count = parameters.read_varint("number of directions", min(MOST, entries))

        def undo(values: Array, symbols: Sequence[Array]) -> Array:
            result = np.zeros(entries, np.float64)
            for t, coefficient in enumerate(values.tolist()):
                result += coefficient * direction(context.seed, t, entries)
            return result.astype(context.dtype)

        return Plan(((count,),), (), undo)


part = Scalars

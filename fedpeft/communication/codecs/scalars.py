"""Scalars: an update that is a sum of known directions travels as its coefficients.

Source: Li et al., DeComFL, arXiv 2405.15861.

    x = sum_t c_t z_t,   z_t random signs (n,) from the payload's seed, t = 1 .. T;   c = (Z Z^T)^-1 Z x,   x' = Z^T c

Both ends draw the directions, so T numbers travel, whatever n is. The local optimizer `zeroth_order` moves a client
along the same directions: with plain steps at one learning rate its update is such a sum, and x' = x except for
rounding. For any other update, x' is the projection to T random directions. It contains a share of about T / n of the
squared length, so next to nothing arrives.

Set `steps` to at least the number of steps that a client makes in a round. A client that makes fewer steps sends zeros
for the others.
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
"""Offset of a direction's number among the seed's streams; the positions of a codec's steps are small numbers."""


def direction(seed: int, number: int, entries: int) -> Array:
    """Return the signs z (entries,) of a direction, int8, which are fixed forever by the seed and the number.

    The first entries are the same for any length.

    Args:
        seed: below 2^64.
        number: number of the direction.
        entries: length of the direction.
    """
    generator = np.random.Philox(key=np.array([seed, STREAM + number], np.uint64))
    bits = generator.random_raw(-(-entries // 64)).astype("<u8", copy=False).view(np.uint8)
    return 1 - 2 * np.unpackbits(bits, count=entries, bitorder="little").view(np.int8)


def compute_gram(directions: Array) -> Array:
    """Return the Gram matrix of directions, (T, T) in fp64, exactly.

    The products of signs in a block sum to whole numbers in fp32.

    Args:
        directions: signs Z (T, n), int8.
    """
    gram = np.zeros((len(directions), len(directions)))
    for start in range(0, directions.shape[1], BLOCK):
        block = directions[:, start : start + BLOCK].astype(np.float32)
        gram += block @ block.T
    return gram


@dataclass(frozen=True)
class Scalars(Transform):
    """One coefficient for each of a few directions that both ends know."""

    steps: int = setting(10, "T, the number of directions and of coefficients that travel", low=1, high=MOST)

    draws = True
    lossless = False

    def encode(self, signal: Signal, context: Context) -> Encoded:
        """Return the coefficients, (T,), of the nearest sum of directions; at most one for each entry."""
        entries = len(signal.values)
        count = min(self.steps, entries)
        directions = np.zeros((count, entries), np.int8)
        for t in range(count):
            directions[t] = direction(context.seed, t, entries)
        goal = np.array([float(np.dot(z.astype(signal.values.dtype), signal.values)) for z in directions])
        found = scipy.linalg.lstsq(compute_gram(directions), goal, check_finite=False)[0] if count else goal
        return Encoded(Signal(found.astype(signal.values.dtype), ((count,),)), encode_varint(count))

    @classmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """Read the number of directions, at most that of the agreed codec; the plan sums them."""
        entries, most = count_total(shapes), MOST
        if context.agreed is not None:  # drawing them takes time, so a peer may not choose how many
            most = max((step.steps for step in context.agreed if isinstance(step, cls)), default=0)
        count = parameters.read_varint("number of directions", min(most, entries))

        def undo(values: Array, symbols: Sequence[Array]) -> Array:
            result = np.zeros(entries, np.float64)
            for t, coefficient in enumerate(values.tolist()):
                result += coefficient * direction(context.seed, t, entries)
            return result.astype(context.dtype)

        return Plan(((count,),), (), undo)


part = Scalars

"""Round-robin segments: a client sends one part of its update in a round, and the others in the next ones (EcoLoRA,
Liu et al., arXiv 2506.02001).

    the update's n entries are cut into S segments of n/S;   client k sends segment (k + t) mod S in round t

where t counts the rounds in which the same is trained: with `rolora` those of B, and those of A.

A cohort's clients send different segments, and nothing has to be told: places cost nothing, where those of `topk` do.
With `gain=mean` what is sent counts S times: over S rounds in turn a client's segments add up to what it would have
sent, and the cohort's mean is that over those who sent a segment where these are equally many. With `gain=none` it is
biased, and wants a memory in front: `ef14 | segments(gain=none) | ..`.

Deviation: the paper's clients mix what they receive with their own stale segments; here all start from the server's
state. Its sparsification and Golomb code are `topk` and `rans` behind this step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.communication.payload import Array, Reader, Shape, count_total, encode_varint
from fedpeft.communication.steps import Context, Encoded, Plan, Signal, Transform
from fedpeft.errors import PayloadError
from fedpeft.parts import setting

MOST = 1024


@dataclass(frozen=True)
class Segments(Transform):
    """The segment whose turn it is."""

    count: int = setting(4, "S, how many segments; each is sent in every S-th round", low=1, high=MOST)
    gain: str = setting(
        "mean", "mean: what is sent counts S times, right on average; none: as it is", choices=("mean", "none")
    )

    lossless = False
    takes_turns: ClassVar[bool] = True

    def encode(self, signal: Signal, context: Context) -> Encoded:
        """The segment's values, and which one it is of how many."""
        turn = context.turn % self.count
        part = _get_segment(len(signal.values), self.count, turn)
        values = signal.values[part] * signal.values.dtype.type(self.count if self.gain == "mean" else 1)
        weights = None if signal.weights is None else signal.weights[part]
        return Encoded(Signal(values, ((len(values),),), weights), encode_varint(self.count) + encode_varint(turn))

    @classmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """Return how many segments, and which one."""
        entries, count = count_total(shapes), parameters.read_varint("number of segments", MOST)
        turn = parameters.read_varint("number of the segment", MOST)
        if turn >= count:
            raise PayloadError(f"FP6035 the payload holds segment {turn} of {count}")
        part = _get_segment(entries, count, turn)

        def undo(values: Array, symbols: Sequence[Array]) -> Array:
            result = np.zeros(entries, context.dtype)
            result[part] = values
            return result

        return Plan(((part.stop - part.start,),), (), undo)


def _get_segment(entries: int, count: int, turn: int) -> slice:
    return slice(entries * turn // count, entries * (turn + 1) // count)


part = Segments

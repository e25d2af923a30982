"""Round-robin segments: in each round a client sends one part of its update (EcoLoRA, Liu et al., arXiv 2506.02001).

    the update's n entries are cut into S segments of n/S;   client k sends segment (k + t) mod S in round t

Here t counts the rounds in which the same tensors are trained: with `rolora` those of B, and those of A.

A cohort's clients send different segments. Places need no bytes, unlike those of `topk`. With `gain=mean` the sent
values are multiplied by S. Over S rounds in turn a client's segments then add up to its whole update. If each segment
is sent by equally many clients, the cohort's mean is the mean over the clients that sent it. With `gain=none` the step
is biased, and needs a memory in front: `ef14 | segments(gain=none) | ..`.

Deviation: the paper's clients mix what they receive with their own stale segments; here all start from the server's
state. Its sparsification and Golomb code correspond to `topk` and `rans` behind this step.
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
    """The transform that keeps the segment whose turn it is."""

    count: int = setting(4, "S, the number of segments; each is sent in every S-th round", low=1, high=MOST)
    gain: str = setting(
        "mean", "mean: sent values count S times, unbiased; none: they count once", choices=("mean", "none")
    )

    lossless = False
    takes_turns: ClassVar[bool] = True

    def encode(self, signal: Signal, context: Context) -> Encoded:
        """Return the segment's values; the parameters are the number of segments and its number."""
        turn = context.turn % self.count
        part = _get_segment(len(signal.values), self.count, turn)
        values = signal.values[part] * signal.values.dtype.type(self.count if self.gain == "mean" else 1)
        weights = None if signal.weights is None else signal.weights[part]
        return Encoded(Signal(values, ((len(values),),), weights), encode_varint(self.count) + encode_varint(turn))

    @classmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """Read the number of segments, and the number of this one."""
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

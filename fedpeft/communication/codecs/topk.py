"""Keep the entries that matter most, drop the rest: the k = fraction * n with the largest importance.

Importance is |x| times the entry's sensitivity if the caller gives weights, else |x|. For LoRA it is |dB_uv|
norm(A_v,:) and |dA_uv| norm(B_:,u), the effect on dW. The step is biased; use it with error feedback: norm(x - x')^2 <=
(1 - k/n) norm(x)^2 without weights (Stich et al., arXiv 1809.07599, lemma A.1).

The places travel as a mask, one symbol per entry. `rans` shrinks it to its entropy n h(k/n), which is that of the gaps
between the places, and a mask can't name a place twice or out of range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedpeft.communication.payload import Array, Reader, Shape, count_total, encode_varint
from fedpeft.communication.steps import Context, Encoded, Plan, Signal, Transform
from fedpeft.communication.symbols import Expected, Symbols
from fedpeft.errors import PayloadError
from fedpeft.parts import setting


@dataclass(frozen=True)
class TopK(Transform):
    """The largest entries of the whole state, as one segment."""

    fraction: float = setting(0.1, "kept part of the entries; 1 keeps all", above=0, high=1)

    lossless = False

    def encode(self, signal: Signal, context: Context) -> Encoded:
        """Return the kept values in their order, and the mask."""
        count = len(signal.values)
        keep = min(count, max(1, round(self.fraction * count)))
        importance = np.abs(signal.values)
        if signal.weights is not None:
            importance *= signal.weights
        mask = np.zeros(count, np.uint8)
        if keep:
            mask[np.argpartition(importance, count - keep)[count - keep :]] = 1
        kept = mask > 0
        weights = None if signal.weights is None else signal.weights[kept]
        return Encoded(Signal(signal.values[kept], ((keep,),), weights), encode_varint(keep), (Symbols(mask, 2),))

    @classmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """Read the number of kept entries."""
        count = count_total(shapes)
        keep = parameters.read_varint("number of kept entries", count)

        def undo(values: Array, symbols: Sequence[Array]) -> Array:
            kept = symbols[0] > 0
            if np.count_nonzero(kept) != keep:
                raise PayloadError(f"FP6036 the payload's mask does not keep the {keep} entries that it states")
            result = np.zeros(count, context.dtype)
            result[kept] = values
            return result

        return Plan(((keep,),), (Expected(count, 2),), undo)


part = TopK

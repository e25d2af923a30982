"""Each matrix as its leading singular triples: x ~ sum_i s_i u_i v_i^T, r = share * min(m, n) of them.

This is the best approximation of that rank (Eckart and Young, 1936), and a contraction, as error feedback requires:
norm(x - x')^2 <= (1 - r / min(m, n)) norm(x)^2. PowerSGD (arXiv 1905.13727) sends such factors of gradients. Here they
are exact, from the eigenvectors of the small Gram matrix, and a quantizer follows.

An error of e in u_i costs s_i |v_i| e in x, so factors need finer quantization if s_i is larger. The step achieves that
by scale alone. It sends c_i, which is s_i w^2 rounded to half octaves (w: root mean square of the tensor's weights). It
also sends the values u_i sqrt(s_i c_i), v_i sqrt(s_i c_i), of norm s_i w. Then one quantization step for all of them,
as in `adaptive`, is the reverse water-filling over singular directions: those below the step's level vanish. Updates of
LoRA factors have steep spectra, so at one bit per parameter and below this beats any code for single entries.

Tensors that are not matrices pass unchanged. With all triples (share 1) and dither, the code is unbiased.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedpeft.communication.payload import Array, Reader, Shape, count_entries
from fedpeft.communication.steps import Context, Encoded, Plan, Signal, Transform
from fedpeft.communication.symbols import Expected, Symbols
from fedpeft.errors import PayloadError
from fedpeft.parts import setting

LEVELS: Final = 64
"""Number of codes for c: half octaves below the largest c."""
SMALLEST: Final = 1e-28
"""A state whose largest c is below this counts as zero, so that 1 / c stays within fp32."""


@dataclass(frozen=True)
class LowRank(Transform):
    """Truncated singular value decomposition; give it a quantizer that works on the factors, such as `adaptive`."""

    share: float = setting(0.25, "kept part of each matrix' full rank, at least one triple", above=0, high=1)

    lossless = False
    proportional = False

    def encode(self, signal: Signal, context: Context) -> Encoded:
        """Return factor vectors, one segment each, and half-octave codes of their c."""
        share = float(np.float32(self.share))
        layout = _Layout(signal.shapes, share)
        values = np.empty(layout.after, signal.values.dtype)
        weights = None if signal.weights is None else np.ones(layout.after, signal.values.dtype)
        triples = [_compute_triples(signal, group) for group in layout.groups]
        importance = np.zeros(layout.triples)
        for group, (_, s, _, w) in zip(layout.groups, triples, strict=True):
            importance[group.rows] = s * w**2
        largest = float(np.float32(min(importance.max(initial=0.0), 1e38)))
        if largest < SMALLEST:
            largest = 0.0
        ratio = np.divide(largest, importance, out=np.full_like(importance, np.inf), where=importance > 0)
        codes = np.clip(np.round(2 * np.log2(np.maximum(ratio, 1))), 0, LEVELS - 1).astype(np.uint8)
        c = _decode_importance(largest, codes)
        for group, (left, s, right, _) in zip(layout.groups, triples, strict=True):
            norm = np.sqrt(s * c[group.rows])[:, :, None]
            blocks = np.concatenate((left * norm, right * norm), axis=2)  # (tensors, rank, m + n)
            values[group.after] = blocks.reshape(len(blocks), -1)
        for before, after in layout.others:
            values[after] = signal.values[before]
            if weights is not None and signal.weights is not None:
                weights[after] = signal.weights[before]
        parameters = struct.pack("<ff", share, largest)
        return Encoded(Signal(values, layout.shapes, weights), parameters, (Symbols(codes, LEVELS),))

    @classmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """Read the share and the largest c, fp32."""
        share, largest = struct.unpack("<ff", parameters.take(8, "share and largest importance"))
        if not (0 < share <= 1 and 0 <= largest < math.inf):
            raise PayloadError(f"FP6033 the payload's step lowrank has share {share} and largest importance {largest}")
        layout = _Layout(shapes, share)

        def undo(values: Array, symbols: Sequence[Array]) -> Array:
            c = _decode_importance(largest, symbols[0])
            inverse = np.divide(1, c, out=np.zeros_like(c), where=c > 0).astype(context.dtype)
            result = np.empty(layout.before, context.dtype)
            for group in layout.groups:
                m = group.shape[0]
                blocks = values[group.after].reshape(len(group.after), -1, sum(group.shape))
                matrices = np.zeros((len(blocks), *group.shape), context.dtype)
                for i in range(blocks.shape[1]):  # added in a fixed order: the same bits on every machine
                    left = blocks[:, i, :m] * inverse[group.rows[:, i, None]]
                    matrices += left[:, :, None] * blocks[:, i, None, m:]
                result[group.before] = matrices.reshape(len(blocks), -1)
            for before, after in layout.others:
                result[before] = values[after]
            return result

        return Plan(layout.shapes, (Expected(layout.triples, LEVELS),), undo)


@dataclass(frozen=True)
class _Group:
    """The matrices of one shape.

    Attributes:
        shape: (m, n).
        before: places of their entries, (tensors, m n).
        after: places of their factors, (tensors, r (m + n)).
        rows: numbers of their triples, (tensors, r).
    """

    shape: Shape
    before: Array
    after: Array
    rows: Array


class _Layout:
    """The segments that are matrices, and the place of each value before and after the step."""

    def __init__(self, shapes: tuple[Shape, ...], share: float) -> None:
        """Compute the places for segments of these shapes."""
        self.before = self.after = self.triples = 0
        self.others: list[tuple[slice, slice]] = []
        segments: list[Shape] = []
        places: dict[Shape, list[tuple[int, int, int]]] = {}
        for shape in shapes:
            if len(shape) == 2 and min(shape) > 1:
                places.setdefault(shape, []).append((self.before, self.after, self.triples))
                rank = _rank(shape, share)
                segments += [(shape[0],), (shape[1],)] * rank
                self.after += rank * sum(shape)
                self.triples += rank
            else:
                self.others.append(
                    (
                        slice(self.before, self.before + count_entries(shape)),
                        slice(self.after, self.after + count_entries(shape)),
                    )
                )
                segments.append(shape)
                self.after += count_entries(shape)
            self.before += count_entries(shape)
        self.shapes = tuple(segments)
        self.groups = [_create_group(shape, np.array(at), _rank(shape, share)) for shape, at in places.items()]


def _rank(shape: Shape, share: float) -> int:
    return max(1, round(share * min(shape)))


def _create_group(shape: Shape, at: Array, rank: int) -> _Group:
    before, after, rows = (
        at[:, i, None] + np.arange(n) for i, n in enumerate((count_entries(shape), rank * sum(shape), rank))
    )
    return _Group(shape, before, after, rows)


def _compute_triples(signal: Signal, group: _Group) -> tuple[Array, Array, Array, Array]:
    """Return the leading singular triples of a group's matrices, and the tensors' weights.

    The arrays are the left vectors (tensors, r, m), the singular values (tensors, r), the right vectors (tensors, r, n)
    and the root mean square weights (tensors, 1).
    """
    m, n = group.shape
    matrices = signal.values[group.before].reshape(-1, m, n).astype(np.float64)
    w = np.ones((len(matrices), 1))
    if signal.weights is not None:
        w = np.sqrt(np.square(signal.weights[group.before], dtype=np.float64).mean(axis=1, keepdims=True))
    wide = matrices if m <= n else matrices.transpose(0, 2, 1)
    _, vectors = np.linalg.eigh(wide @ wide.transpose(0, 2, 1))
    left = vectors[:, :, ::-1].transpose(0, 2, 1)[:, : group.rows.shape[1]]  # (tensors, r, short side), orthonormal
    # the sign of an eigenvector is arbitrary: without a rule, the last bits of x would decide the levels that are sent
    left = left * np.copysign(1.0, np.take_along_axis(left, np.abs(left).argmax(axis=2)[:, :, None], axis=2))
    right = left @ wide
    s = np.sqrt(np.square(right).sum(axis=2))
    right = np.divide(right, s[:, :, None], out=np.zeros_like(right), where=s[:, :, None] > 0)
    return (left, s, right, w) if m <= n else (right, s, left, w)


def _decode_importance(largest: float, codes: Array) -> Array:
    """Return c = largest * 2^(-code / 2), float64 from exact operations."""
    half = np.array([1.0, math.sqrt(0.5)])
    c: Array = np.ldexp(largest * half[codes & 1], -(codes >> 1).astype(np.int32))
    return c


part = LowRank

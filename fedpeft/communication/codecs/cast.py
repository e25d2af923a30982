"""Each value as one floating-point number of a narrower (or the same) width.

The words go out as byte planes, lowest byte first: the high bytes (sign and exponent) of an update are nearly alike, so
an entropy coder or zstd shrinks them, while the mantissa bytes are noise. Rounding is to nearest, ties to even;
values beyond the range of fp16 or bf16 go to its largest finite number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from fedpeft.communication.payload import Array, Reader, Shape, total
from fedpeft.communication.steps import Context, Encoded, Plan, Quantizer, Signal
from fedpeft.communication.symbols import Expected, Symbols
from fedpeft.parts import setting

WORDS: Final[dict[str, tuple[torch.dtype, torch.dtype]]] = {
    "fp32": (torch.float32, torch.int32),
    "bf16": (torch.bfloat16, torch.int16),
    "fp16": (torch.float16, torch.int16),
    "fp64": (torch.float64, torch.int64),
}
"""Dtype and its word by setting; the code on the wire is the position. Append only."""


@dataclass(frozen=True)
class Cast(Quantizer):
    """Round to a floating-point dtype; exact where that holds the values."""

    dtype: str = setting("fp32", "width of the numbers on the wire", choices=tuple(WORDS))

    @property
    def lossless(self) -> bool:  # type: ignore[override]
        """Whether fp32 values survive."""
        return self.dtype in ("fp32", "fp64")

    def encode(self, signal: Signal, context: Context) -> Encoded:
        """Values to byte planes."""
        target, word = WORDS[self.dtype]
        values = torch.from_numpy(np.ascontiguousarray(signal.values))
        limit = torch.finfo(target).max
        if torch.finfo(values.dtype).max > limit:
            values = values.clamp(-limit, limit)
        bytes_ = values.to(target).view(word).numpy().view(np.uint8).reshape(-1, word.itemsize)
        planes = tuple(Symbols(np.ascontiguousarray(bytes_[:, i]), 256) for i in range(word.itemsize))
        return Encoded(None, bytes((list(WORDS).index(self.dtype),)), planes)

    @classmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """One byte: the dtype's code."""
        name = list(WORDS)[parameters.varint("dtype code", len(WORDS) - 1)]
        target, word = WORDS[name]
        count = total(shapes)

        def undo(values: Array, symbols: Sequence[Array]) -> Array:
            bytes_ = np.empty((count, word.itemsize), np.uint8)
            for i, plane in enumerate(symbols):
                bytes_[:, i] = plane
            words = np.frombuffer(bytes_, np.dtype(f"i{word.itemsize}"))
            tensor = torch.from_numpy(words).view(target) if count else torch.zeros(0, dtype=target)
            wide = torch.float64 if context.dtype == np.float64 else torch.float32
            result: Array = tensor.to(wide).numpy()
            return result

        return Plan((), (Expected(count, 256),) * word.itemsize, undo)


part = Cast

"""Each value as one floating-point number of a narrower (or the same) width.

The words travel as byte planes, lowest byte first. The high bytes (sign and exponent) of an update are nearly alike, so
an entropy coder or zstd shrinks them; the mantissa bytes are noise. Rounding is to nearest, ties to even. Values beyond
the range of fp16 or bf16 become its largest finite number.

If many words are 0, as in the updates of a sparse strategy, a mask of one bit per entry comes first and zeros are left
out. That happens if mask and words together take fewer bytes in radix packing; -0.0 counts as a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from fedpeft.communication.payload import Array, Reader, Shape, count_total, encode_varint
from fedpeft.communication.steps import Context, Encoded, Plan, Quantizer, Signal
from fedpeft.communication.symbols import Expected, Symbols, compute_packed_size
from fedpeft.errors import PayloadError
from fedpeft.parts import setting

WORDS: Final[dict[str, tuple[str, str]]] = {
    "fp32": ("float32", "int32"),
    "bf16": ("bfloat16", "int16"),
    "fp16": ("float16", "int16"),
    "fp64": ("float64", "int64"),
}
"""Torch's names of the dtype and of its word, by setting; the position is the code on the wire. Append only."""
SPARSE: Final = 64
"""Offset of the dtype's code if zeros are left out."""


@dataclass(frozen=True)
class Cast(Quantizer):
    """Round to a floating-point dtype, exactly if that dtype contains the values."""

    dtype: str = setting("fp32", "width of the numbers on the wire", choices=tuple(WORDS))

    @property
    def lossless(self) -> bool:  # type: ignore[override]
        """Whether fp32 values survive."""
        return self.dtype in ("fp32", "fp64")

    def encode(self, signal: Signal, context: Context) -> Encoded:
        """Turn values into byte planes."""
        target, word = _get_dtypes(self.dtype)
        values = torch.from_numpy(np.ascontiguousarray(signal.values))
        limit = torch.finfo(target).max
        if torch.finfo(values.dtype).max > limit:
            values = values.clamp(-limit, limit)
        words = values.to(target).view(word).numpy()
        code = list(WORDS).index(self.dtype)
        sent = words != 0
        count = int(np.count_nonzero(sent))
        if compute_packed_size(len(words), 2) + word.itemsize * count + len(
            encode_varint(count)
        ) >= word.itemsize * len(words):
            return Encoded(None, bytes((code,)), _split_bytes(words))
        mask = Symbols(sent.astype(np.uint8), 2)
        return Encoded(None, bytes((SPARSE + code,)) + encode_varint(count), (mask, *_split_bytes(words[sent])))

    @classmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """Read one byte, the dtype's code; if zeros are left out, also the number of other values."""
        sparse, code = divmod(parameters.read_varint("dtype code", SPARSE + len(WORDS) - 1), SPARSE)
        if code >= len(WORDS):
            raise PayloadError(f"FP6029 the payload's step cast has the dtype code {code}; there are {len(WORDS)}")
        target, word = _get_dtypes(list(WORDS)[code])
        count = count_total(shapes)
        kept = parameters.read_varint("number of values that are not 0", count) if sparse else count

        def undo(values: Array, symbols: Sequence[Array]) -> Array:
            bytes_ = np.empty((kept, word.itemsize), np.uint8)
            for i, plane in enumerate(symbols[1:] if sparse else symbols):
                bytes_[:, i] = plane
            words = bytes_.reshape(-1).view(f"i{word.itemsize}")
            if sparse:
                mask, sent = symbols[0] > 0, words
                if np.count_nonzero(mask) != kept:
                    raise PayloadError(f"FP6030 the payload's mask does not keep the {kept} values that it states")
                words = np.zeros(count, sent.dtype)
                words[mask] = sent
            tensor = torch.from_numpy(words).view(target) if count else torch.zeros(0, dtype=target)
            wide = torch.float64 if context.dtype == np.float64 else torch.float32
            result: Array = tensor.to(wide).numpy()
            return result

        masks = (Expected(count, 2),) if sparse else ()
        return Plan((), (*masks, *(Expected(kept, 256),) * word.itemsize), undo)


def _split_bytes(words: Array) -> tuple[Symbols, ...]:
    """Return the bytes of words (n,), lowest first, as one stream of n symbols each."""
    bytes_ = words.view(np.uint8).reshape(-1, words.itemsize)
    return tuple(Symbols(np.ascontiguousarray(bytes_[:, i]), 256) for i in range(words.itemsize))


def _get_dtypes(name: str) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtype that a setting names, and the dtype of its words."""
    target, word = WORDS[name]
    return getattr(torch, target), getattr(torch, word)


part = Cast

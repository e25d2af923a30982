"""Symbols in radix packing: as many to a 64-bit word as fit, so four-bit codes take four bits and trits 1.6.

The size depends on counts and alphabets alone, never on the values; `fedpeft.communication.symbols.pack_symbols` packs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.communication.payload import Array
from fedpeft.communication.steps import Packer
from fedpeft.communication.symbols import (
    Expected,
    Symbols,
    bound_packed_size,
    compute_packed_size,
    pack_symbols,
    unpack_symbols,
)
from fedpeft.errors import PayloadError


@dataclass(frozen=True)
class Pack(Packer):
    """Fixed-width packing, without entropy coding."""

    def pack(self, symbols: Sequence[Symbols]) -> bytes:
        """Pack the symbols, one stream after the other."""
        return b"".join(pack_symbols(s.values, s.alphabet) for s in symbols)

    @classmethod
    def bound(cls, expected: Sequence[Expected]) -> int:
        """Return the exact size in bytes."""
        return bound_packed_size(expected)

    @classmethod
    def unpack(cls, data: memoryview, expected: Sequence[Expected]) -> list[Array]:
        """Unpack the symbols; the size must be exact."""
        if len(data) != bound_packed_size(expected):
            raise PayloadError(
                f"FP6034 the payload's body has {len(data)} bytes, {bound_packed_size(expected)} are expected"
            )
        result, at = [], 0
        for e in expected:
            end = at + compute_packed_size(e.count, e.alphabet)
            result.append(unpack_symbols(data[at:end], e.count, e.alphabet))
            at = end
        return result


part = Pack

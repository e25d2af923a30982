"""Symbols by asymmetric numeral systems (range ANS): their order-0 entropy plus a short table for each stream.

Source: J. Duda, arXiv 1311.2540; the coder is constriction's. `fedpeft.communication.entropy` describes the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.communication.entropy import decode_symbols, encode_bound, encode_symbols
from fedpeft.communication.payload import Array, Reader
from fedpeft.communication.steps import Packer
from fedpeft.communication.symbols import Expected, Symbols


@dataclass(frozen=True)
class Rans(Packer):
    """Entropy coding; streams that would not shrink are packed as in `pack`."""

    def pack(self, symbols: Sequence[Symbols]) -> bytes:
        """Return tables, coded words and raw symbols."""
        return encode_symbols(symbols)

    @classmethod
    def bound(cls, expected: Sequence[Expected]) -> int:
        """Return the size of radix packing plus the marks of the tables."""
        return encode_bound(expected)

    @classmethod
    def unpack(cls, data: memoryview, expected: Sequence[Expected]) -> list[Array]:
        """Decode the symbols; the data must end with them."""
        reader = Reader(data, "the payload's body")
        symbols = decode_symbols(reader, expected)
        reader.end()
        return symbols


part = Rans

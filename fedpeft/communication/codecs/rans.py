"""Symbols by asymmetric numeral systems (range ANS): their order-0 entropy plus a short table for each kind.

J. Duda, arXiv 1311.2540; the coder is constriction's. See `fedpeft.communication.entropy` for the bytes.
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
    """Entropy coding; kinds of symbols that would not shrink are packed as `pack` does."""

    def pack(self, symbols: Sequence[Symbols]) -> bytes:
        """Tables, coded words, raw symbols."""
        return encode_symbols(symbols)

    @classmethod
    def bound(cls, expected: Sequence[Expected]) -> int:
        """Radix packing, plus what the tables' marks take."""
        return encode_bound(expected)

    @classmethod
    def unpack(cls, data: memoryview, expected: Sequence[Expected]) -> list[Array]:
        """The symbols; the data must end with them."""
        reader = Reader(data, "the payload's body")
        symbols = decode_symbols(reader, expected)
        reader.end()
        return symbols


part = Rans

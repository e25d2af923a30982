"""Entropy coding of symbols: one ANS coder (constriction) over all streams, with a frequency table for each.

    for each stream: varint L, the length of its table
        L = 0  raw: the symbols follow the tables, in radix packing
        L = 1  constant: varint symbol, nothing else
        L > 1  varint first symbol, then L frequencies as varints; symbols outside do not occur
    varint number of 32-bit words, the words of the coder, the raw streams

Frequencies are integers that sum to at most 4,096 or so: both ends build the same fixed-point model from them on any
machine. Asymmetric numeral systems: J. Duda, arXiv 1311.2540.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import constriction
import numpy as np

from fedpeft.communication.payload import Array, Reader, encode_varint
from fedpeft.communication.symbols import (
    Expected,
    Symbols,
    bound_packed_size,
    compute_packed_size,
    pack_symbols,
    unpack_symbols,
)
from fedpeft.errors import PayloadError

PRECISION: Final = 1 << 12
"""The approximate sum of a table's frequencies."""
IN_CACHE: Final = 1 << 14
"""The number of symbols that are coded at a time."""
MAX_ALPHABET: Final = 1 << 12
"""Streams with a larger alphabet are sent raw."""


def compute_entropy(counts: Array) -> float:
    """Compute the order-0 entropy of symbols with these counts, in bits for all of them together."""
    positive = counts[counts > 0].astype(np.float64)
    return float((positive * np.log2(positive.sum() / positive)).sum())


def encode_bound(expected: Sequence[Expected]) -> int:
    """Return the most bytes that `encode_symbols` makes."""
    return bound_packed_size(expected) + 8 * len(expected) + 16


def encode_symbols(streams: Sequence[Symbols]) -> bytes:
    """Encode all streams, each by table or raw, whichever is shorter."""
    coder = constriction.stream.stack.AnsCoder()
    tables: list[bytes] = []
    raw: list[bytes] = []
    coded: list[tuple[Array, int, Any]] = []
    for stream in streams:
        table, first, frequencies, _ = _build_table(stream)
        tables.append(table)
        if frequencies is None:
            raw.append(pack_symbols(stream.values, stream.alphabet))
        elif len(frequencies) > 1:
            coded.append((stream.values, first, _create_model(frequencies)))
    for values, first, model in reversed(coded):  # a stack: the last symbols come out first
        for start in reversed(range(0, len(values), IN_CACHE)):
            symbols = values[start : start + IN_CACHE].astype(np.int32)
            symbols -= np.int32(first)
            coder.encode_reverse(symbols, model)
    words = coder.get_compressed()
    data = b"".join((*tables, encode_varint(len(words)), words.astype("<u4").tobytes(), *raw))
    if len(data) > encode_bound([s.expectation for s in streams]):
        return b"\0" * (len(streams) + 1) + b"".join(pack_symbols(s.values, s.alphabet) for s in streams)
    return data


def estimate_coded_size(streams: Sequence[Symbols]) -> float:
    """Estimate the number of bytes of `encode_symbols` without encoding."""
    return 6.0 + sum(_build_table(stream)[3] for stream in streams)


def decode_symbols(reader: Reader, expected: Sequence[Expected]) -> list[Array]:
    """Decode the streams that `encode_symbols` encoded, each below its alphabet.

    Raises:
        PayloadError: the bytes are too short, or `encode_symbols` did not make them from this many symbols.
    """
    tables = [_read_table(reader, e) for e in expected]
    length = reader.read_varint("number of coded words", encode_bound(expected) // 4 + 1)
    words = np.frombuffer(reader.take(4 * length, "coded symbols"), "<u4").astype(np.uint32)
    if length and words[-1] == 0:
        raise PayloadError("FP6047 the payload's coded symbols end in an empty word")
    coder = constriction.stream.stack.AnsCoder(words)
    result: list[Array] = []
    for e, table in zip(expected, tables, strict=True):
        dtype = np.min_scalar_type(max(e.alphabet - 1, 1))
        if table is None:
            result.append(np.zeros(0, dtype))
        elif len(table[1]) == 1 or e.count == 0:
            result.append(np.full(e.count, table[0], dtype))
        else:
            symbols = coder.decode(_create_model(table[1]), e.count)
            result.append((symbols + np.int32(table[0])).astype(dtype))
    if not coder.is_empty():
        raise PayloadError("FP6048 the payload's coded symbols do not end where they should")
    for i, (e, table) in enumerate(zip(expected, tables, strict=True)):
        if table is None:
            piece = reader.take(compute_packed_size(e.count, e.alphabet), "packed symbols")
            result[i] = unpack_symbols(piece, e.count, e.alphabet)
    return result


def _create_model(frequencies: Array) -> Any:
    return constriction.stream.model.Categorical(frequencies.astype(np.float64), perfect=False)


def _build_table(stream: Symbols) -> tuple[bytes, int, Array | None, float]:
    """Return a stream's table on the wire, its first symbol, its frequencies and its approximate bytes.

    Frequencies are None if the stream is sent raw. The bytes include the symbols.
    """
    count = len(stream.values)
    packed = compute_packed_size(count, stream.alphabet)
    raw = encode_varint(0), 0, None, 1.0 + packed
    if count == 0 or stream.alphabet > MAX_ALPHABET:
        return raw
    counts = stream.counts
    first = int(np.argmax(counts > 0))
    counts = counts[first:]
    if len(counts) == 1:
        return encode_varint(1) + encode_varint(first), first, counts, 1.0 + len(encode_varint(first))
    frequencies = counts
    if count > PRECISION:
        scaled = np.round(counts * (PRECISION / count)).astype(np.int64)
        frequencies = np.where(counts > 0, np.maximum(scaled, 1), 0)
    table = b"".join(map(encode_varint, (len(frequencies), first, *frequencies.tolist())))
    bits = compute_entropy(counts)
    if len(table) + bits / 8 + 4 >= packed:
        return raw
    return table, first, frequencies, len(table) + bits / 8


def _read_table(reader: Reader, expected: Expected) -> tuple[int, Array] | None:
    length = reader.read_varint("table length", min(expected.alphabet, MAX_ALPHABET))
    if length == 0:
        return None
    first = reader.read_varint("first symbol of a table", expected.alphabet - length)
    if length == 1:
        return first, np.ones(1)
    frequencies = np.array([reader.read_varint("frequency", 2 * PRECISION) for _ in range(length)])
    if not frequencies.any():
        raise PayloadError("FP6049 the payload has a frequency table of zeros only")
    return first, frequencies

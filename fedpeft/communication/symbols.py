"""Symbols, integers below a small alphabet, and their packing by radix into words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from fedpeft.communication.payload import Array
from fedpeft.errors import ConfigError, PayloadError


@dataclass(frozen=True)
class Symbols:
    """Unsigned integers (n,), each below `alphabet`.

    Attributes:
        values: the integers.
        alphabet: their exclusive bound.
        known: their counts, if they are known.
    """

    values: Array
    alphabet: int
    known: Array | None = None

    @property
    def expectation(self) -> Expected:
        """The number of symbols, and their alphabet."""
        return Expected(len(self.values), self.alphabet)

    def check(self, step: str) -> None:
        """Reject values that packing would corrupt, or that the receiver would read as others.

        Args:
            step: name of the codec step that has made them.

        Raises:
            ConfigError: the values are not integers, or lie outside of 0 to `alphabet` - 1.
        """
        kind, count = self.values.dtype, len(self.values)
        if kind.kind not in "iu":
            raise ConfigError(f"FP1067 the codec step {step} produces symbols of type {kind}; legal are integers")
        if not count or (kind.kind == "u" and np.iinfo(kind).max < self.alphabet):
            return
        least, most = int(self.values.min()) if kind.kind == "i" else 0, int(self.values.max())
        if least < 0 or most >= max(self.alphabet, 1):
            raise ConfigError(
                f"FP1068 the codec step {step} produces symbols from {least} to {most} below an alphabet of "
                f"{self.alphabet}; legal are 0 to {max(self.alphabet, 1) - 1}: give Symbols a larger alphabet, "
                "or clip them"
            )

    @cached_property
    def counts(self) -> Array:
        """The number of times that each symbol occurs, up to the largest that does, for an alphabet up to 2^15."""
        return count_symbols(self.values, 1) if self.known is None else self.known


@dataclass(frozen=True)
class Expected:
    """Symbols that a plan expects: their number and their alphabet."""

    count: int
    alphabet: int


def count_symbols(values: Array, length: int) -> Array:
    """Return how often 0, 1, 2, ... occur in integers (n,), of 16 bits below 2^15; at least `length` counts."""
    if values.dtype == np.uint16:
        values = values.view(np.int16)
    counts: Array = torch.bincount(torch.from_numpy(values), minlength=length).numpy()  # numpy's takes twice as long
    return counts


def sum_weights(values: Array, weights: Array, length: int) -> Array:
    """Sum the weights (n,) of 0, 1, ..., length - 1 in integers (n,) below `length`."""
    sums: Array = torch.bincount(torch.from_numpy(values), torch.from_numpy(weights), minlength=length).numpy()
    return sums


@lru_cache(maxsize=1024)
def count_per_word(alphabet: int) -> int:
    """Return how many symbols below `alphabet` (2 to 2^32) fit into 64 bits."""
    count = 1
    while alphabet ** (count + 1) <= 1 << 64:
        count += 1
    return count


def compute_packed_size(count: int, alphabet: int) -> int:
    """Compute the bytes that `count` symbols below `alphabet` take."""
    if alphabet <= 1:
        return 0
    words, tail = divmod(count, count_per_word(alphabet))
    largest: int = alphabet**tail - 1
    return 8 * words + (largest.bit_length() + 7) // 8


def bound_packed_size(expected: Sequence[Expected]) -> int:
    """Compute the bytes that all these symbols take in radix packing."""
    return sum(compute_packed_size(e.count, e.alphabet) for e in expected)


def pack_symbols(symbols: Array, alphabet: int) -> bytes:
    """Pack symbols (n,), unsigned and below `alphabet`, in radix `alphabet`, into `compute_packed_size` bytes."""
    if alphabet <= 1:
        return b""
    if alphabet == 256:
        return symbols.astype(np.uint8, copy=False).tobytes()
    width, size = count_per_word(alphabet), compute_packed_size(len(symbols), alphabet)
    padded = np.zeros(-(-len(symbols) // width) * width, symbols.dtype)
    padded[: len(symbols)] = symbols
    columns = padded.reshape(-1, width)
    words = np.zeros(len(columns), np.uint64)
    for column in reversed(range(width)):
        words *= np.uint64(alphabet)
        words += columns[:, column]
    return words.astype("<u8", copy=False).tobytes()[:size]


def unpack_symbols(data: bytes | memoryview, count: int, alphabet: int) -> Array:
    """Unpack the `count` symbols that `pack_symbols` packed, into the smallest unsigned dtype that holds them.

    Raises:
        PayloadError: the size is wrong, or a word contains more than its symbols.
    """
    dtype = np.min_scalar_type(max(alphabet - 1, 1))
    size = compute_packed_size(count, alphabet)
    if len(data) != size:
        raise PayloadError(f"FP6078 {count} symbols below {alphabet} take {size} bytes, the payload has {len(data)}")
    if alphabet <= 1:
        return np.zeros(count, dtype)
    if alphabet == 256:
        return np.frombuffer(data, np.uint8)
    width = count_per_word(alphabet)
    words = np.frombuffer(bytes(data) + bytes(-size % 8), "<u8").astype(np.uint64)
    columns = np.empty((len(words), width), dtype)
    for column in range(width):
        quotient = words // np.uint64(alphabet)
        columns[:, column] = words - quotient * np.uint64(alphabet)
        words = quotient
    symbols = columns.reshape(-1)
    if words.any() or symbols[count:].any():
        raise PayloadError(f"FP6079 the payload's packed symbols go beyond their alphabet of {alphabet}")
    return symbols[:count]

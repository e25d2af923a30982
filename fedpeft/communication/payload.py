"""The wire format of one encoded state, version 1, and the checks that every payload from a peer must pass.

    offset  bytes  field
    0       3      magic "fpu"
    3       1      version, 1
    4       4      CRC-32 of everything after this field (catches accidents; no check below relies on it)
    8       8      digest of the adapter's names and shapes (BLAKE2b)
    16      1      flags: 1 = subset, 2 = seed, 4 = mixed dtypes
    17      ...    subset: one bit per tensor of the adapter, sorted by name, lowest bit first
            ...    dtype code, one byte; with mixed dtypes one byte for each tensor sent
            8      seed: unsigned
            1      number of steps, then for each step: length and name, length and parameters
            ...    body: what the packer and the byte steps made of the symbols

All integers are little-endian; lengths inside steps are LEB128 varints. No name travels: the receiver knows its
adapter, and the digest shows whether the sender meant the same one. So unknown and duplicate names are impossible,
and the size of every allocation follows from the receiver's own shapes.

Symbols (integers below a known alphabet A) are packed in radix A, as many to a 64-bit word as fit: 64 bits, 40 trits,
16 nibbles or 8 bytes. The packed size is a function of count and alphabet alone.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft.errors import PayloadError

Array = NDArray[Any]
Shape = tuple[int, ...]

MAGIC: Final = b"fpu"
VERSION: Final = 1
CHECKED_FROM: Final = 8
"""Offset of the first byte under the checksum."""
MAX_STEPS: Final = 16
MAX_NAME: Final = 32
MAX_PARAMETERS: Final = 1 << 20

SUBSET, SEED, MIXED = 1, 2, 4

DTYPES: Final[tuple[torch.dtype, ...]] = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""The dtypes that travel; a dtype's code is its index. Append only."""


def encode_varint(number: int) -> bytes:
    """Encode a number as LEB128: seven bits per byte, lowest first; `number` is at least 0."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class Reader:
    """A cursor over bytes from a peer; reading past the end raises a PayloadError that names what is missing."""

    def __init__(self, data: bytes | memoryview, owner: str = "the payload") -> None:
        """Start at the first byte; `owner` names the bytes in errors."""
        self._data = memoryview(data)
        self._at = 0
        self._owner = owner

    def take(self, count: int, what: str) -> bytes:
        """Return the next `count` bytes."""
        if count > len(self._data) - self._at:
            raise PayloadError(
                f"FP6062 {self._owner} ends inside its {what}: {count} bytes are needed, {len(self._data) - self._at} "
                "are left"
            )
        piece = bytes(self._data[self._at : self._at + count])
        self._at += count
        return piece

    def read_integer(self, size: int, what: str) -> int:
        """Read an unsigned little-endian integer of `size` bytes."""
        return int.from_bytes(self.take(size, what), "little")

    def read_varint(self, what: str, high: int, low: int = 0) -> int:
        """Read a varint from `low` to `high`, both inclusive."""
        number = 0
        for shift in range(0, 63, 7):
            byte = self.read_integer(1, what)
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        else:
            raise PayloadError(f"FP6063 {self._owner} has a {what} of more than 63 bits")
        if not low <= number <= high:
            raise PayloadError(f"FP6064 {self._owner} has {what} = {number}, which must be {low} to {high}")
        return number

    def read_rest(self) -> memoryview:
        """Return all bytes that are left."""
        piece = self._data[self._at :]
        self._at = len(self._data)
        return piece

    def end(self) -> None:
        """Raise PayloadError unless everything was read."""
        if self._at != len(self._data):
            raise PayloadError(f"FP6065 {self._owner} has {len(self._data) - self._at} bytes too many")


@dataclass(frozen=True)
class Header:
    """The header of a payload.

    Attributes:
        digest: digest of the whole adapter's names and shapes, 8 bytes.
        sent: whether each tensor of the adapter (sorted by name) is in the payload; None: all are.
        dtypes: dtypes of the tensors sent, in the same order.
        seed: seed of the dither, rotation or stochastic rounding, below 2^64; None: nothing was drawn.
        steps: name and parameters of each step, in the order of encoding.
    """

    digest: bytes
    sent: tuple[bool, ...] | None
    dtypes: tuple[torch.dtype, ...]
    seed: int | None
    steps: tuple[tuple[str, bytes], ...]


def compute_layout_digest(shapes: Mapping[str, Shape]) -> bytes:
    """Compute eight bytes that identify names and shapes, whatever their order."""
    return _compute_digest(tuple(sorted((name, tuple(shape)) for name, shape in shapes.items())))


@lru_cache(maxsize=256)
def _compute_digest(entries: tuple[tuple[str, Shape], ...]) -> bytes:
    text = "\n".join(f"{name}\t{','.join(map(str, shape))}" for name, shape in entries)
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def write_payload(header: Header, body: bytes) -> bytes:
    """Return the bytes of a payload."""
    flags, tail = 0, bytearray()
    if header.sent is not None:
        flags |= SUBSET
        tail += np.packbits(np.array(header.sent, bool), bitorder="little").tobytes()
    codes = bytes(DTYPES.index(d) for d in header.dtypes)
    if len(set(codes)) > 1:
        flags |= MIXED
        tail += codes
    else:
        tail += codes[:1] or b"\0"
    if header.seed is not None:
        flags |= SEED
        tail += header.seed.to_bytes(8, "little")
    tail.append(len(header.steps))
    for name, parameters in header.steps:
        tail += encode_varint(len(name)) + name.encode() + encode_varint(len(parameters)) + parameters
    return seal(MAGIC + bytes((VERSION,)) + b"\0\0\0\0" + header.digest + bytes((flags,)) + bytes(tail) + body)


def compute_checksum(values: Array) -> int:
    """Compute a checksum with which both ends verify that they hold the same values."""
    return zlib.crc32(np.ascontiguousarray(values).view(np.uint8).data)


def seal(payload: bytes) -> bytes:
    """Return the payload with the checksum of its contents."""
    return payload[:4] + zlib.crc32(payload[CHECKED_FROM:]).to_bytes(4, "little") + payload[CHECKED_FROM:]


def read_payload(payload: bytes, shapes: Mapping[str, Shape]) -> tuple[Header, memoryview]:
    """Read header and body of a payload for an adapter of these `shapes`.

    Raises:
        PayloadError: the bytes are not a payload, have another version, are damaged, or belong to another adapter.
    """
    reader = Reader(payload)
    if reader.take(3, "magic") != MAGIC:
        raise PayloadError(f"FP6066 these {len(payload)} bytes are not a fedpeft payload: the magic is missing")
    version = reader.read_integer(1, "version")
    if version != VERSION:
        raise PayloadError(f"FP6067 the payload is of format version {version}; this release reads version {VERSION}")
    checksum = reader.read_integer(4, "checksum")
    if checksum != zlib.crc32(memoryview(payload)[CHECKED_FROM:]):
        raise PayloadError("FP6068 the payload is damaged: its checksum does not match its contents")
    digest = reader.take(8, "layout digest")
    expected = compute_layout_digest(shapes)
    if digest != expected:
        raise PayloadError(
            f"FP6069 the payload was made for another adapter: its layout digest is {digest.hex()}, but "
            f"{expected.hex()} is expected ({len(shapes)} tensors)"
        )
    flags = reader.read_integer(1, "flags")
    if flags & ~(SUBSET | SEED | MIXED):
        raise PayloadError(f"FP6070 the payload has unknown flags {flags:#04x}")
    sent = _read_subset(reader, len(shapes)) if flags & SUBSET else None
    count = len(shapes) if sent is None else sum(sent)
    codes = reader.take(count if flags & MIXED else 1, "dtypes")
    if any(code >= len(DTYPES) for code in codes):
        raise PayloadError(f"FP6071 the payload has an unknown dtype code; legal: 0 to {len(DTYPES) - 1}")
    dtypes = tuple(DTYPES[code] for code in codes) if flags & MIXED else (DTYPES[codes[0]],) * count
    seed = reader.read_integer(8, "seed") if flags & SEED else None
    steps = _read_steps(reader)
    return Header(digest, sent, dtypes, seed, steps), reader.read_rest()


def _read_subset(reader: Reader, count: int) -> tuple[bool, ...]:
    bits = np.unpackbits(np.frombuffer(reader.take((count + 7) // 8, "subset"), np.uint8), bitorder="little")
    if bits[count:].any():
        raise PayloadError(f"FP6072 the payload's subset names tensors beyond the adapter's {count}")
    return tuple(bool(bit) for bit in bits[:count])


def _read_steps(reader: Reader) -> tuple[tuple[str, bytes], ...]:
    count = reader.read_integer(1, "step count")
    if count > MAX_STEPS:
        raise PayloadError(f"FP6073 the payload names {count} steps; at most {MAX_STEPS} are legal")
    steps = []
    for _ in range(count):
        name = reader.take(reader.read_varint("length of a step's name", MAX_NAME, 1), "step name")
        if not name.isascii():
            raise PayloadError("FP6074 the payload names a step in other than ASCII letters")
        parameters = reader.take(reader.read_varint("length of a step's parameters", MAX_PARAMETERS), "step parameters")
        steps.append((name.decode(), parameters))
    return tuple(steps)


def count_total(shapes: Sequence[Shape]) -> int:
    """Count the parameters in tensors of these shapes."""
    return sum(count_entries(shape) for shape in shapes)


def count_entries(shape: Shape) -> int:
    """Count the parameters in a tensor of this shape (a scalar has one)."""
    product = 1
    for length in shape:
        product *= length
    return product

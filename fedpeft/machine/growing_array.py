"""Arrays that grow piece by piece: small ones in memory, large ones in a file that nobody else sees.

The file lies in the cache, has no name, and is gone when the process ends, however it ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fedpeft.machine import cache, files
from fedpeft.machine.mapped import PIECE, leave

HELD = 16 << 20
"""Bytes of an array from which on it lies in a file."""

ROWS = 1 << 17
"""Rows whose numbers are worked on at a time."""


def create_nameless_file() -> IO[bytes]:
    """A file for what does not fit memory, on the disk of the cache; a part of memory is what /tmp often is.

    Raises:
        AssetError: the cache can't be made.
    """
    return tempfile.TemporaryFile(dir=cache.get_cache_directory())


class GrowingArray:
    """A flat array that is appended to."""

    def __init__(self, dtype: DTypeLike, held: int = HELD) -> None:
        self.dtype, self._held = np.dtype(dtype), held
        self._pieces: list[NDArray[Any]] = []
        self._waiting = 0  # bytes in pieces
        self._file: IO[bytes] | None = None
        self._length = 0

    def append(self, values: Any) -> None:
        """Add `values`, whatever makes a flat array of the spool's type.

        Raises:
            AssetError: the disk of the cache is full.
        """
        piece = np.asarray(values, self.dtype)
        self._pieces.append(piece)
        self._waiting += piece.nbytes
        self._length += len(piece)
        if self._waiting > (self._held if self._file is None else PIECE):
            self._write()

    def _write(self) -> None:
        self._file = self._file or create_nameless_file()
        with cache.check_disk_space("rows that do not fit memory"):
            self._file.write(np.concatenate(self._pieces).tobytes())
        self._pieces, self._waiting = [], 0

    def create_array(self) -> NDArray[Any]:
        """What was appended, flat; of a file, mapped read-only. Nothing may be appended afterwards.

        Raises:
            AssetError: the disk of the cache is full.
        """
        if self._file is None:
            return np.concatenate([np.zeros(0, self.dtype), *self._pieces])
        if self._pieces:
            self._write()
        with cache.check_disk_space("rows that do not fit memory"):
            self._file.flush()
        return np.memmap(self._file, self.dtype, "r", shape=(self._length,))


# ---------------------------------------------------------------------------------------------- numbers of each row


def create_spool(dtype: DTypeLike) -> GrowingArray:
    """A spool for a number of each row: of more than `PIECE` bytes they lie in a file."""
    return GrowingArray(dtype, held=PIECE)


def create_zeros(length: int, dtype: DTypeLike) -> NDArray[Any]:
    """Zeros, flat; of more than `PIECE` bytes in a file, mapped, which goes with the array.

    Raises:
        AssetError: the disk of the cache is full.
    """
    kind = np.dtype(dtype)
    if length * kind.itemsize <= PIECE:
        return np.zeros(length, kind)
    file = create_nameless_file()
    with cache.check_disk_space("rows that do not fit memory"):  # writing to a mapping could not say that there is none
        files.reserve(file.fileno(), length * kind.itemsize)
    return np.memmap(file, kind, "r+", shape=(length,))


def iterate_parts(length: int) -> Iterator[slice]:
    """The rows 0 to `length`, some at a time."""
    return (slice(start, min(start + ROWS, length)) for start in range(0, length, ROWS))


def move_to_file(array: NDArray[Any]) -> NDArray[Any]:
    """A flat array of a number for each row; a large one in a file, mapped read-only."""
    return array if array.nbytes <= PIECE or isinstance(array, np.memmap) else concatenate([array])


def concatenate(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Flat arrays of one type one after the other; a large result in a file, mapped read-only."""
    made = create_spool(np.result_type(*arrays))
    for array in arrays:
        for part in iterate_parts(len(array)):
            made.append(array[part])
        leave(array)
    return made.create_array()


def take_rows(array: NDArray[Any], rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
    """`array[rows]`; a large result in a file, mapped read-only."""
    made = create_spool(array.dtype)
    for part in iterate_parts(len(rows)):
        made.append(array[rows[part]])
    leave(array)
    leave(rows)
    return made.create_array()


def find_unmarked(marks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where `marks` (rows,) are not set, ascending; a large result in a file, mapped read-only."""
    made = create_spool(np.int64)
    for part in iterate_parts(len(marks)):
        made.append(np.flatnonzero(~marks[part]) + part.start)
    leave(marks)
    return made.create_array()


def find_unique(column: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The values that occur, sorted, and of each row (rows,) which of them it has: `np.unique` with its inverse.

    Whole numbers that are as small as positions are counted instead of sorted, a part of the rows at a time.
    """
    small = column.dtype.kind in "iu" and column.ndim == 1 and len(column) > 0
    if not small or int(column.min()) < 0 or int(column.max()) > len(column):
        found, inverse = np.unique(column, return_inverse=True)
        return found, inverse.reshape(-1)
    held = np.zeros(int(column.max()) + 1, bool)
    for part in iterate_parts(len(column)):
        held[column[part]] = True
    place = np.cumsum(held, dtype=np.int32) - np.int32(1)
    made = create_spool(np.int32)
    for part in iterate_parts(len(column)):
        made.append(place[column[part]])
    leave(column)
    return np.flatnonzero(held).astype(column.dtype), made.create_array()


def count_groups(group: NDArray[np.integer[Any]], groups: int) -> NDArray[np.int64]:
    """How many rows each group has, 0 <= group < groups: int64 (groups,)."""
    made = np.zeros(groups, np.int64)
    for part in iterate_parts(len(group)):
        made += np.bincount(group[part], minlength=groups)
    return made


def sort_by_group(
    rows: NDArray[np.integer[Any]] | None, group: NDArray[np.integer[Any]], groups: int
) -> NDArray[np.int64]:
    """`rows` (any,) ordered by `group[row]`, 0 <= group < groups, and within each as they are; None: all, ascending.

    A large result lies in a file, mapped.
    """
    total = len(group) if rows is None else len(rows)
    made, place = create_zeros(total, np.int64), np.zeros(groups, np.int64)
    for part in iterate_parts(total):
        place += np.bincount(group[_get_rows(rows, part)], minlength=groups)
    place = np.cumsum(place) - place  # where the next row of each group goes
    for part in iterate_parts(total):
        some = _get_rows(rows, part)
        theirs = group[some]
        order = np.argsort(theirs, kind="stable")
        sizes = np.bincount(theirs, minlength=groups)
        first = np.cumsum(sizes) - sizes
        within = np.arange(len(some)) - np.repeat(first, sizes)
        made[np.repeat(place, sizes) + within] = some[order]
        place += sizes
    leave(group)
    return made


def _get_rows(rows: NDArray[np.integer[Any]] | None, part: slice) -> NDArray[np.integer[Any]]:
    return np.arange(part.start, part.stop) if rows is None else np.asarray(rows[part])

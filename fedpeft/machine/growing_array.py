"""Arrays that grow piece by piece: small ones in memory, large ones in a file that no other process sees.

The unnamed file is on the cache's disk, and disappears when the process ends, however it ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fedpeft.machine import cache, files
from fedpeft.machine.mapped_files import PIECE, leave

HELD = 16 << 20
"""Most bytes of an array in memory; a larger one is stored in a file."""

ROWS = 1 << 17
"""Number of rows that are processed at a time."""


def create_nameless_file() -> IO[bytes]:
    """Create an unnamed file on the cache's disk, for data beyond memory; /tmp is often a part of memory.

    Raises:
        AssetError: the cache can't be created.
    """
    return tempfile.TemporaryFile(dir=cache.get_cache_directory())


class GrowingArray:
    """A flat array that grows at its end."""

    def __init__(self, dtype: DTypeLike, held: int = HELD) -> None:
        """Start empty; up to `held` bytes stay in memory."""
        self.dtype, self._held = np.dtype(dtype), held
        self._pieces: list[NDArray[Any]] = []
        self._waiting = 0  # bytes in pieces
        self._file: IO[bytes] | None = None
        self._length = 0

    def append(self, values: Any) -> None:
        """Append `values`, anything that converts to a flat array of the same type.

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
        """Return the flat array; a file is mapped read-only. Nothing may be appended afterwards.

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


# ------------------------------------------------------------------------------------------------ one number per row


def create_spool(dtype: DTypeLike) -> GrowingArray:
    """Create a growing array for one number per row; more than `PIECE` bytes are stored in a file."""
    return GrowingArray(dtype, held=PIECE)


def create_zeros(length: int, dtype: DTypeLike) -> NDArray[Any]:
    """Return a flat array of zeros; more than `PIECE` bytes are in a mapped file, which disappears with the array.

    Raises:
        AssetError: the disk of the cache is full.
    """
    kind = np.dtype(dtype)
    if length * kind.itemsize <= PIECE:
        return np.zeros(length, kind)
    file = create_nameless_file()
    with cache.check_disk_space("rows that do not fit memory"):  # a write to a mapping can't report a full disk
        files.reserve(file.fileno(), length * kind.itemsize)
    return np.memmap(file, kind, "r+", shape=(length,))


def iterate_parts(length: int) -> Iterator[slice]:
    """Yield slices that cover the rows 0 to `length`, `ROWS` at a time."""
    return (slice(start, min(start + ROWS, length)) for start in range(0, length, ROWS))


def move_to_file(array: NDArray[Any]) -> NDArray[Any]:
    """Return a flat array; a large one is moved to a file and mapped read-only."""
    return array if array.nbytes <= PIECE or isinstance(array, np.memmap) else concatenate([array])


def concatenate(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Concatenate flat arrays; a large result is in a file, mapped read-only."""
    made = create_spool(np.result_type(*arrays))
    for array in arrays:
        for part in iterate_parts(len(array)):
            made.append(array[part])
        leave(array)
    return made.create_array()


def take_rows(array: NDArray[Any], rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
    """Return `array[rows]`; a large result is in a file, mapped read-only."""
    made = create_spool(array.dtype)
    for part in iterate_parts(len(rows)):
        made.append(array[rows[part]])
    leave(array)
    leave(rows)
    return made.create_array()


def find_unmarked(marks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the positions where `marks` (rows,) are false, ascending; a large result is in a file, read-only."""
    made = create_spool(np.int64)
    for part in iterate_parts(len(marks)):
        made.append(np.flatnonzero(~marks[part]) + part.start)
    leave(marks)
    return made.create_array()


def find_unique(column: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the distinct values, sorted, and the position of each row's value among them, as `np.unique` does.

    Integers below the number of rows are counted instead of sorted, a part of the rows at a time.
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
    """Return the number of rows of each group, 0 <= group < groups: int64 (groups,)."""
    made = np.zeros(groups, np.int64)
    for part in iterate_parts(len(group)):
        made += np.bincount(group[part], minlength=groups)
    return made


def sort_by_group(
    rows: NDArray[np.integer[Any]] | None, group: NDArray[np.integer[Any]], groups: int
) -> NDArray[np.int64]:
    """Return `rows` (any,) sorted by `group[row]`, 0 <= group < groups, and stable within each group.

    None stands for all rows. A large result is in a mapped file.
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

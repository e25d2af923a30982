"""Texts of many rows: a short list in memory, or a file on disk that is read on demand.

The positions of many texts are on disk, too: 8 bytes per text if all rows are used, 16 bytes if some are selected.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from fedpeft.machine import cache, growing_array
from fedpeft.machine.growing_array import HELD, create_nameless_file
from fedpeft.machine.mapped_files import PIECE, leave

BLOCK = 4096
"""Number of texts that are read together during iteration."""


class TextFile:
    """Texts in UTF-8, one after another.

    Attributes:
        file: an unnamed file, deleted with the last object that reads it.
        ends: int64 (texts,), the end position of each text.
    """

    def __init__(self, file: IO[bytes], ends: NDArray[np.int64]) -> None:
        """Store the open file and the end positions of its texts."""
        self.file, self.ends = file, ends

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.ends)

    def read(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the texts at `rows`, each 0 <= row < texts, in that order."""
        ends = self.ends[rows]
        starts = np.where(rows > 0, self.ends[rows - 1], 0)
        if not len(rows):
            return []
        low, high = int(starts.min()), int(ends.max())
        spans = zip(starts.tolist(), ends.tolist(), strict=True)
        if high - low <= 4 * int((ends - starts).sum()) + PIECE:  # one call for all
            found = os.pread(self.file.fileno(), high - low, low)
            return [found[a - low : b - low].decode("utf-8", "surrogatepass") for a, b in spans]
        return [os.pread(self.file.fileno(), b - a, a).decode("utf-8", "surrogatepass") for a, b in spans]


class TextColumn(Sequence[str]):
    """Texts on disk, as a sequence of str.

    They are read with `pread` and not memory-mapped, so the system caches them and does not count them as the process's
    memory.

    Attributes:
        files: the files with the texts, numbered through all files from the first.
        rows: int64 (texts,), the number of each text; None: all, in their order.
    """

    def __init__(self, files: tuple[TextFile, ...], rows: NDArray[np.int64] | None = None) -> None:
        """Store the files and the selected rows."""
        self.files, self.rows = files, rows

    def __len__(self) -> int:
        """Return the number of texts."""
        return sum(map(len, self.files)) if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> TextColumn: ...
    def __getitem__(self, index: Any) -> Any:
        """Return the text at a position, or the column of a slice."""
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self))))
        number = range(len(self))[index]  # resolves negative indices, and raises IndexError beyond the end
        return self._read(number, number + 1)[0]

    def __iter__(self) -> Iterator[str]:
        """Yield the texts in order, read in blocks."""
        for start in range(0, len(self), BLOCK):
            yield from self._read(start, min(start + BLOCK, len(self)))
        for numbers in (self.rows, *(file.ends for file in self.files)):
            if numbers is not None:
                leave(numbers)

    def take(self, indices: NDArray[np.integer[Any]]) -> TextColumn:
        """Return the texts at `indices` (int, any length), in that order."""
        chosen = np.asarray(indices, np.int64)
        return TextColumn(
            self.files,
            growing_array.move_to_file(chosen) if self.rows is None else growing_array.take_rows(self.rows, chosen),
        )

    def join_texts(self, others: Sequence[str]) -> TextColumn:
        """Return these texts, followed by `others`."""
        if not len(others):
            return self
        more = others if isinstance(others, TextColumn) else TextColumn((_write_texts(others),))
        if more.files == self.files:
            return TextColumn(self.files, growing_array.concatenate([self._get_row_numbers(), more._get_row_numbers()]))
        shifted = more._get_row_numbers() + sum(map(len, self.files))
        return TextColumn((*self.files, *more.files), growing_array.concatenate([self._get_row_numbers(), shifted]))

    def _get_row_numbers(self) -> NDArray[np.int64]:
        return np.arange(len(self)) if self.rows is None else self.rows

    def _read(self, start: int, end: int) -> list[str]:
        numbers = np.arange(start, end) if self.rows is None else self.rows[start:end]
        if len(self.files) == 1:
            return self.files[0].read(numbers)
        found = [""] * len(numbers)
        first = 0
        for file in self.files:
            own = np.flatnonzero((numbers >= first) & (numbers < first + len(file)))
            for place, text in zip(own.tolist(), file.read(numbers[own] - first), strict=True):
                found[place] = text
            first += len(file)
        return found


class TextWriter:
    """Collector of texts, which moves them to disk beyond `held` bytes."""

    def __init__(self, held: int = HELD) -> None:
        """Start empty; up to `held` characters stay in memory."""
        self._held = held
        self._texts: list[str] = []
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._ends = growing_array.create_spool(np.int64)
        self._written = 0
        self._end = 0

    def __len__(self) -> int:
        """Return the number of texts added so far."""
        return self._written + len(self._texts)

    def append(self, text: str) -> None:
        """Add a text.

        Raises:
            AssetError: the disk of the cache is full.
        """
        self._texts.append(text)
        self._bytes += len(text)
        if self._bytes > (self._held if self._file is None else PIECE):
            self._write()

    def _write(self) -> None:
        self._file = self._file or create_nameless_file()
        encoded = [text.encode("utf-8", "surrogatepass") for text in self._texts]
        ends = self._end + np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        with cache.check_disk_space("rows that do not fit memory"):
            self._file.write(b"".join(encoded))
            self._file.flush()
        self._ends.append(ends)
        self._written += len(ends)
        self._end = int(ends[-1]) if len(ends) else self._end
        self._texts, self._bytes = [], 0

    def create_column(self) -> Sequence[str]:
        """Return the texts: a list, or a column on disk. Nothing may be added afterwards.

        Raises:
            AssetError: the disk of the cache is full.
        """
        if self._file is None:
            return self._texts
        if self._texts:
            self._write()
        return TextColumn((TextFile(self._file, self._ends.create_array()),))


def _write_texts(texts: Iterable[str]) -> TextFile:
    writer = TextWriter(held=-1)
    for text in texts:
        writer.append(text)
    column = writer.create_column()
    assert isinstance(column, TextColumn)
    return column.files[0]


def take_texts(texts: Sequence[str], indices: NDArray[np.integer[Any]]) -> Sequence[str]:
    """Return the texts at `indices` (int, any length), in that order."""
    return texts.take(indices) if isinstance(texts, TextColumn) else [texts[i] for i in indices.tolist()]


def join_texts(first: Sequence[str], second: Sequence[str]) -> Sequence[str]:
    """Return the texts of both, one after the other."""
    if isinstance(first, TextColumn):
        return first.join_texts(second)
    if isinstance(second, TextColumn):
        return TextColumn((_write_texts(first),)).join_texts(second) if len(first) else second
    return [*first, *second]

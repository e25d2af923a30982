"""Arrays that grow piece by piece: small ones in memory, large ones in a file that nobody else sees.

The file lies in the cache, has no name, and is gone when the process ends, however it ends.
"""

from __future__ import annotations

import tempfile
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fedpeft.machine import cache
from fedpeft.machine.mapped import PIECE

HELD = 16 << 20
"""Bytes of an array from which on it lies in a file."""


def nameless_file() -> IO[bytes]:
    """A file for what does not fit memory, on the disk of the cache; a part of memory is what /tmp often is.

    Raises:
        AssetError: the cache can't be made.
    """
    return tempfile.TemporaryFile(dir=cache.cache_directory())


class Spool:
    """A flat array that is appended to."""

    def __init__(self, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
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
        if self._waiting > (HELD if self._file is None else PIECE):
            self._write()

    def _write(self) -> None:
        self._file = self._file or nameless_file()
        with cache.room_for("rows that do not fit memory"):
            self._file.write(np.concatenate(self._pieces).tobytes())
        self._pieces, self._waiting = [], 0

    def array(self) -> NDArray[Any]:
        """What was appended, flat; of a file, mapped read-only. Nothing may be appended afterwards.

        Raises:
            AssetError: the disk of the cache is full.
        """
        if self._file is None:
            return np.concatenate([np.zeros(0, self.dtype), *self._pieces])
        if self._pieces:
            self._write()
        with cache.room_for("rows that do not fit memory"):
            self._file.flush()
        return np.memmap(self._file, self.dtype, "r", shape=(self._length,))

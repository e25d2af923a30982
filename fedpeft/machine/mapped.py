"""Reading mapped files without keeping them: what was read of a mapping counts as the process's own memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

PIECE = 1 << 20
"""Bytes that are read or written at a time."""


def iterate_pieces(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """A C-contiguous array's entries in order, flat, `PIECE` bytes at a time; of a `np.memmap` no more is resident."""
    flat = array.reshape(-1)
    step = max(1, PIECE // array.itemsize)
    for start in range(0, len(flat), step):
        yield flat[start : start + step]
        leave(array)


def leave(array: NDArray[Any]) -> None:
    """Give up the pages that were read of a `np.memmap`; the system caches the file while it has room."""
    mapped: Any = getattr(array, "_mmap", None)
    if mapped is None and isinstance(array.base, np.memmap):  # a plain view of all or some of it
        mapped = getattr(array.base, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)

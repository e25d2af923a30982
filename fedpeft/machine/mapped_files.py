"""Reading of mapped files without keeping their pages, which count as the process's own memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

PIECE = 1 << 20
"""Number of bytes that are read or written at a time."""


def iterate_pieces(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield a C-contiguous array's entries in order, flat, `PIECE` bytes at a time.

    No more than that of a `np.memmap` stays in memory.
    """
    flat = array.reshape(-1)
    step = max(1, PIECE // array.itemsize)
    for start in range(0, len(flat), step):
        yield flat[start : start + step]
        leave(array)


def leave(array: NDArray[Any]) -> None:
    """Release the pages of a `np.memmap`; the system caches the file while it has memory."""
    mapped: Any = getattr(array, "_mmap", None)
    if mapped is None and isinstance(array.base, np.memmap):  # a plain view of all or some of it
        mapped = getattr(array.base, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)

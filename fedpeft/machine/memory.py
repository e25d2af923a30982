"""Memory of a run: proportional set size (PSS), summed over all its processes; and ways to keep it low."""

from __future__ import annotations

import ctypes
import gc
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

INTERVAL_SECONDS = 5.0
"""Seconds between two samples, each of which costs tens of milliseconds."""

FIRST_SECONDS = 10.0
"""Seconds during which the interval is ten times shorter, so that short runs have a peak, too."""


class PeakMemory:
    """Peak of `measure_memory`, sampled in the background.

    Attributes:
        bytes: the highest sum so far; 0 if the system does not report memory.
    """

    def __init__(self) -> None:
        """Prepare the sampling thread."""
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        """Start sampling."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        began = time.monotonic()
        while True:
            self.bytes = max(self.bytes, measure_memory())
            young = time.monotonic() - began < FIRST_SECONDS
            if self._stop.wait(INTERVAL_SECONDS / 10 if young else INTERVAL_SECONDS):
                return


def measure_memory() -> int:
    """Return the bytes in use now; pages that several processes share are divided among them."""
    me = psutil.Process()
    total = 0
    for process in (me, *me.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except (psutil.Error, AttributeError):
            continue
    return total


_limiting = threading.Lock()


@contextmanager
def limit_memory(more: int) -> Iterator[None]:
    """Raise MemoryError if this process allocates more than `more` bytes beyond what it holds now.

    The limit applies to the process, so allocations of other threads count, too. Systems without /proc/self/statm
    (macOS) have no limit.
    """
    with _limiting:
        before = resource.getrlimit(resource.RLIMIT_AS)
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
        except OSError:
            yield
            return
        limit = pages * resource.getpagesize() + more
        soft, hard = before
        if soft == resource.RLIM_INFINITY or limit < soft:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)


def release() -> None:
    """Collect garbage, then call `trim`; this takes a fifth of a second if everything is imported."""
    gc.collect()
    trim()


def trim() -> None:
    """Return freed memory to the system, in milliseconds; only glibc keeps memory below the top of its heap."""
    of_libc = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if of_libc is not None:
        of_libc(0)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Constants of glibc's malloc.h."""


def keep_freed() -> None:
    """Let this process keep freed memory for its next allocations, up to 256 MB at the top of its heap.

    By default glibc returns it at once, and every training step allocates it again, page by page.
    """
    of_libc = getattr(ctypes.CDLL(None), "mallopt", None)
    if of_libc is not None:
        of_libc(M_MMAP_THRESHOLD, 32 << 20)
        of_libc(M_TRIM_THRESHOLD, 256 << 20)

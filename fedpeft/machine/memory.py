"""Memory of a run: proportional set size (PSS) summed over all its processes, and how to keep it low."""

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
"""Between two samples, each of which takes tens of milliseconds from who computes."""

FIRST_SECONDS = 10.0
"""So long it is a tenth: short runs have a peak, too."""


class PeakMemory:
    """Samples in the background; `bytes` is the highest sum seen (0 where the system does not tell)."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
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
    """Bytes now: pages that several processes share count by their share."""
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
    """Raise MemoryError where this process would allocate over `more` bytes beyond what it holds now.

    The limit is one of the process: it counts the other threads' allocations, too. Where the system has no
    /proc/self/statm (macOS), there is none.
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
    """Collect garbage, then `trim`; takes a fifth of a second where everything is imported."""
    gc.collect()
    trim()


def trim() -> None:
    """Give freed memory back to the system, in milliseconds; glibc alone keeps what lies below the top of its heap."""
    of_libc = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if of_libc is not None:
        of_libc(0)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


def keep_freed() -> None:
    """Let this process keep freed memory for its next allocations, up to 256 MB at the top of its heap.

    glibc gives it back at once, and every training step takes it anew, page by page.
    """
    of_libc = getattr(ctypes.CDLL(None), "mallopt", None)
    if of_libc is not None:
        of_libc(M_MMAP_THRESHOLD, 32 << 20)
        of_libc(M_TRIM_THRESHOLD, 256 << 20)

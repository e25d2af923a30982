"""Start of processes from within a user's script or notebook."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running

PLACES = ("FEDPEFT_CACHE", "FEDPEFT_SHARED_CACHE", "FEDPEFT_FROZEN_GB", "XDG_CACHE_HOME", "HOME")
"""Environment variables that set where data are stored, and how much."""


@contextmanager
def hide_main_module() -> Iterator[None]:
    """Keep processes that are started in this block from running the user's script again, as multiprocessing does.

    Without this, a script needs `if __name__ == "__main__":` around the start. The processes find the function to call
    by its module's name, which must not be `__main__`.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def ignore_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C in this block and in the processes that are started in it, unless they handle it.

    An executor whose shutdown is interrupted leaves workers that wait forever. A process that is still importing would
    print a traceback. Only the main thread can change this; in another thread nothing happens. A handled SIGTERM is
    delivered after the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    came: list[int] = []
    with restore_sigterm():
        if callable(signal.getsignal(signal.SIGTERM)):
            signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)
    if came:
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def restore_sigterm() -> Iterator[None]:
    """Restore the handler of SIGTERM after this block, if there was one, because libraries may replace it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def get_forkserver() -> ForkServerContext:
    """Return a context that forks processes from one that has imported everything: fast, with shared memory.

    The server process keeps the environment of its start, so `get_storage_variables` must be passed to later processes.
    It ignores Ctrl-C from the start, and so do its children.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fedpeft.clients.preload"])
    with hide_main_module(), ignore_interrupts():  # starts the server without waiting for its imports
        ensure_running()
    return context


def get_storage_variables() -> dict[str, str]:
    """Return the variables of this process's environment that set where data are stored."""
    return {name: os.environ[name] for name in PLACES if name in os.environ}


def set_storage_variables(given: Mapping[str, str]) -> None:
    """Set the storage variables to those of another process (`get_storage_variables`)."""
    for name in PLACES:
        os.environ.pop(name, None)
    os.environ.update(given)


def end_with_parent() -> None:
    """End this process when its parent ends, however that happens."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)

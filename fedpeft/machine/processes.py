"""Starting processes from within somebody's script or notebook."""

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
"""What of the environment says where, and within which bounds, things are kept."""


@contextmanager
def hide_main_module() -> Iterator[None]:
    """Processes that are started here do not run the user's script again, as multiprocessing has them do otherwise.

    Without this a script needs `if __name__ == "__main__":` around what starts them. What they are given to call is
    found by its module's name, which must not be `__main__`.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def ignore_interrupts() -> Iterator[None]:
    """Ctrl-C does nothing here, nor ever to the processes that are started here, unless they say otherwise.

    An executor whose shutdown is interrupted leaves workers that wait for ever; a process that still imports what it
    needs would print where it was. Only the main thread can say so: in another one nothing changes. A SIGTERM that
    something is to come of comes afterwards.
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
    """What is to come of SIGTERM is the same afterwards, if anything was: libraries have ideas of their own."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def get_forkserver() -> ForkServerContext:
    """Processes are forked from one that has imported everything and done nothing else: fast, and in shared memory.

    That one keeps the environment of the moment when it was first needed: `get_storage_variables` are handed to who is
    forked later. It ignores Ctrl-C from its first moment on, and so does who is forked.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fedpeft.clients.preload"])
    with hide_main_module(), ignore_interrupts():  # starts it, and does not wait until it has imported anything
        ensure_running()
    return context


def get_storage_variables() -> dict[str, str]:
    """Where things are kept, as this process's environment says it."""
    return {name: os.environ[name] for name in PLACES if name in os.environ}


def keep_where(given: Mapping[str, str]) -> None:
    """Keep things where the process does whose `get_storage_variables` are given."""
    for name in PLACES:
        os.environ.pop(name, None)
    os.environ.update(given)


def end_with_parent() -> None:
    """This process ends when the one that has started it does, however that ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)

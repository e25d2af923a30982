"""How much disk what frozen layers give of rows may take, all runs together: the least recently used goes first.

A store is a folder `frozen-NAME` of the cache. Every process that reads one holds a shared lock on `frozen-NAME.use`,
which the system takes back when the process ends, however it ends; only a store that nobody holds is removed. A run
that is one of many in its process lets go at its end (`keep_states`).

In a cache that several users share, each user's stores have a limit of their own: others' can be neither measured nor
removed.
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock

from fedpeft.errors import AssetError, ConfigError

VARIABLE: Final = "FEDPEFT_FROZEN_GB"
"""Environment variable: the most gigabytes (10^9 bytes) that a user's stores take together, above 0."""

SHARE: Final = 0.5
"""Without it: of what the disk has for them, which is what is free and what they take."""

PREFIX: Final = "frozen-"

_held: dict[Path, int] = {}
_going_on: list[frozenset[Path]] = []  # for each `keep_states` that has not ended, what was held before
_changing = threading.RLock()


def hold(folder: Path) -> None:
    """Keep a store from being removed until the run (`keep_states`), or this process, ends, and note that it has been
    used; waits for a removal.

    Raises:
        PermissionError: the store is another user's.
        OSError: the disk has no room for the note.
    """
    with _changing:
        if folder not in _held:
            lock = os.open(_use(folder), os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(lock, fcntl.LOCK_SH)
            _held[folder] = lock
        os.utime(_use(folder))


@contextmanager
def keep_states() -> Iterator[None]:
    """What is held within stays until the end, and may be removed afterwards; of several at the same time in one
    process, until the last one ends."""
    with _changing:
        _going_on.append(frozenset(_held) if not _going_on else _going_on[0])
    try:
        yield
    finally:
        with _changing:
            before = _going_on.pop()
            for folder in [] if _going_on else [folder for folder in _held if folder not in before]:
                os.close(_held.pop(folder))


def make_room(folder: Path, needed: int) -> None:
    """Remove what was used longest ago until a new store of `needed` bytes has its place within the limit.

    Raises:
        AssetError: it is larger than the limit, or what others are using leaves too little.
        ConfigError: the limit is no number above 0.
        OSError: the disk can't be read.
    """
    cache = folder.parent
    with FileLock(cache / f"kept_states-{os.geteuid()}.lock"):
        others = [
            store for store in cache.glob(f"{PREFIX}*") if store.is_dir() and store != folder and _is_readable(store)
        ]
        sizes = {store: _count_bytes(store) for store in others}
        limit = _limit(cache, sum(sizes.values()))
        if needed > limit:  # before anything is removed for it
            raise AssetError(
                f"FP2026 frozen layers' output of these rows needs {needed / 1e9:.2f} GB, more than the "
                f"{limit / 1e9:.2f} GB that {cache} gives all your runs; set {VARIABLE} to more gigabytes"
            )
        excess = sum(sizes.values()) + needed - limit
        for store in sorted(others, key=_get_last_use):
            if excess <= 0:
                return
            if _try_to_remove(store):
                excess -= sizes.pop(store)
    if excess > 0:
        raise AssetError(
            f"FP2027 frozen layers' output of these rows needs {needed / 1e9:.2f} GB, and runs that are going on use "
            f"{sum(sizes.values()) / 1e9:.2f} GB of the {limit / 1e9:.2f} GB that {cache} gives all your runs; set "
            f"{VARIABLE} to more gigabytes, or wait for the others"
        )


def _limit(cache: Path, taken: int) -> float:
    given = os.environ.get(VARIABLE)
    if not given:
        return SHARE * (shutil.disk_usage(cache).free + taken)
    try:
        limit = float(given)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise ConfigError(f"FP1203 {VARIABLE} must be a number of gigabytes above 0, got {given!r}")
    return limit * 1e9


def _use(store: Path) -> Path:
    return store.with_name(f"{store.name}.use")


def _get_last_use(store: Path) -> float:
    """When a store was last opened; of one that is older than these notes, when it was last written to."""
    use = _use(store)
    return (use if use.exists() else store).stat().st_mtime


def _is_readable(store: Path) -> bool:
    """Whether a store is this user's: all are of mode 0700."""
    try:
        os.scandir(store).close()
    except (PermissionError, FileNotFoundError):
        return False
    return True


def _count_bytes(store: Path) -> int:
    try:
        return sum(file.stat().st_size for file in store.iterdir())
    except FileNotFoundError:  # its run has just given it up
        return 0


def _try_to_remove(store: Path) -> bool:
    """Whether nobody uses a store, so that it is gone now."""
    try:
        lock = os.open(_use(store), os.O_RDWR | os.O_CREAT, 0o600)
    except PermissionError:  # the note is another user's, who had a store of this name
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        (store / "tiles.done").unlink(missing_ok=True)  # first: a kill leaves no store that passes for whole
        shutil.rmtree(store)
        return True
    finally:
        os.close(lock)

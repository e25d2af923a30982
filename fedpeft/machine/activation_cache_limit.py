"""Limit on the disk space of the activation cache, for all runs together: the least recently used store goes first.

A store is a folder `frozen-NAME` of the cache. Every process that reads one holds a shared lock on `frozen-NAME.use`,
which the system releases when the process ends, however it ends. Only a store that nobody holds is removed. A run that
shares its process with others releases its stores at its end (`keep_states`).

If several users share a cache, each user's stores have their own limit, because a user can neither measure nor remove
those of others.
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
"""Environment variable: the most gigabytes (10^9 bytes) of a user's stores together, above 0."""

SHARE: Final = 0.5
"""Default limit: share of the disk space that is free or already used by the stores."""

PREFIX: Final = "frozen-"

_held: dict[Path, int] = {}
_going_on: list[frozenset[Path]] = []  # for each active `keep_states`, the stores held before it
_changing = threading.RLock()


def hold(folder: Path) -> None:
    """Keep a store until the run (`keep_states`) or this process ends, and record its use.

    If another process is removing the store, wait until it has finished.

    Raises:
        PermissionError: the store belongs to another user.
        OSError: the disk has no space for the record.
    """
    with _changing:
        if folder not in _held:
            lock = os.open(_get_lock_path(folder), os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(lock, fcntl.LOCK_SH)
            _held[folder] = lock
        os.utime(_get_lock_path(folder))


@contextmanager
def keep_states() -> Iterator[None]:
    """Release the stores that are first held inside this block at its end.

    If several blocks overlap in one process, the last one to end releases them.
    """
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
    """Remove the least recently used stores until a new store of `needed` bytes fits the limit.

    Raises:
        AssetError: it is larger than the limit, or stores in use leave too little.
        ConfigError: the limit is not a number above 0.
        OSError: the disk can't be read.
    """
    cache = folder.parent
    with FileLock(cache / f"kept_states-{os.geteuid()}.lock"):
        others = [
            store for store in cache.glob(f"{PREFIX}*") if store.is_dir() and store != folder and _is_readable(store)
        ]
        sizes = {store: _count_bytes(store) for store in others}
        limit = _get_limit(cache, sum(sizes.values()))
        if needed > limit:  # before anything is removed for it
            raise AssetError(
                f"FP2026 the activation cache of these examples needs {needed / 1e9:.2f} GB, more than the "
                f"{limit / 1e9:.2f} GB in {cache} for all your runs; set {VARIABLE} to more gigabytes"
            )
        excess = sum(sizes.values()) + needed - limit
        for store in sorted(others, key=_get_last_use):
            if excess <= 0:
                return
            if _try_to_remove(store):
                excess -= sizes.pop(store)
    if excess > 0:
        raise AssetError(
            f"FP2027 the activation cache of these examples needs {needed / 1e9:.2f} GB, but active runs use "
            f"{sum(sizes.values()) / 1e9:.2f} GB of the {limit / 1e9:.2f} GB in {cache} for all your runs; set "
            f"{VARIABLE} to more gigabytes, or wait for the others"
        )


def _get_limit(cache: Path, taken: int) -> float:
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


def _get_lock_path(store: Path) -> Path:
    return store.with_name(f"{store.name}.use")


def _get_last_use(store: Path) -> float:
    """Return when a store was last opened, or, without such a record, last written to."""
    use = _get_lock_path(store)
    return (use if use.exists() else store).stat().st_mtime


def _is_readable(store: Path) -> bool:
    """Return whether a store belongs to this user; all stores have mode 0700."""
    try:
        os.scandir(store).close()
    except (PermissionError, FileNotFoundError):
        return False
    return True


def _count_bytes(store: Path) -> int:
    try:
        return sum(file.stat().st_size for file in store.iterdir())
    except FileNotFoundError:  # its run has just removed it
        return 0


def _try_to_remove(store: Path) -> bool:
    """Remove a store if nobody uses it; return whether it is gone."""
    try:
        lock = os.open(_get_lock_path(store), os.O_RDWR | os.O_CREAT, 0o600)
    except PermissionError:  # the lock belongs to another user, who had a store of this name
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        (store / "tiles.done").unlink(missing_ok=True)  # first, so that a kill leaves no store that looks complete
        shutil.rmtree(store)
        return True
    finally:
        os.close(lock)

"""Cache of folders and arrays that all runs on a machine share; each entry is made once and identified by its name.

Machines share entries, too, if there is a `get_shared_cache`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from fedpeft.errors import AssetError, is_disk_full
from fedpeft.machine import files
from fedpeft.machine.mapped_files import iterate_pieces
from fedpeft.machine.shared_cache import get_shared_cache


def compute_key(**parts: Any) -> str:
    """Return a short hash of `parts`, which JSON can represent."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def hash_files(folder: Path, names: tuple[str, ...]) -> str:
    """Return the SHA-256 of the files in `folder` whose names match one of the glob patterns `names`."""
    digest = hashlib.sha256()
    for path in sorted(p for pattern in names for p in folder.glob(pattern)):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


class _ComputingError(Exception):
    """Failure of the computation, not of the cache that would have stored its result."""

    def __init__(self, error: OSError) -> None:
        """Store the original error."""
        self.error = error


def load_arrays(kind: str, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return named arrays, memory-mapped from the cache; compute and store them if they are missing.

    They may derive from private examples, so other users can't read them.

    Raises:
        AssetError: the cache can't be written, or the arrays belong to another user; also whatever `compute` raises.
    """

    def fill(empty: Path) -> None:
        try:
            made = compute()
        except OSError as error:  # may come from a user's code, not from the cache's disk
            if is_disk_full(error):
                raise
            raise _ComputingError(error) from error
        for label, array in made.items():
            _save(empty / f"{label}.npy", array)

    try:
        target = get_cached_folder(f"{kind}-{name}", fill, private=True)
    except _ComputingError as failed:
        raise failed.error from None
    try:
        files.make_private_folder(target)  # an earlier version may have left it open
    except PermissionError:
        raise AssetError(
            f"FP2011 {target} belongs to another user, and so do the examples in it; set FEDPEFT_CACHE to a "
            "directory of your own"
        ) from None
    return {p.stem: np.load(p, mmap_mode="r", allow_pickle=False) for p in sorted(target.glob("*.npy"))}


def is_cached(kind: str, name: str) -> bool:
    """Return whether `load_arrays` would read the arrays instead of computing them."""
    return (get_cache_directory() / f"{kind}-{name}").is_dir()


def _save(path: Path, array: np.ndarray) -> None:
    """Save an array as `np.save` does; write a mapped file piece by piece, so that none of it stays in memory."""
    if not isinstance(array, np.memmap):
        np.save(path, array, allow_pickle=False)
        return
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        for piece in iterate_pieces(array):
            file.write(piece.tobytes())


LOCK_SECONDS = 1800.0
"""Longest wait for another process that fetches the same entry."""


def get_cache_directory() -> Path:
    """Return the cache, and create it if it is missing.

    It is $FEDPEFT_CACHE, else $XDG_CACHE_HOME/fedpeft, else ~/.cache/fedpeft.

    Raises:
        AssetError: the directory can't be created.
    """
    chosen = os.environ.get("FEDPEFT_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(chosen) if chosen else Path(shared, "fedpeft")
    try:
        path = path.expanduser().absolute()
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
        raise AssetError(
            f"FP2012 can't make the cache {path} ({error}); set FEDPEFT_CACHE to a writable directory"
        ) from None
    return path


def get_cached_folder(name: str, fill: Callable[[Path], None], room: int = 0, private: bool = False) -> Path:
    """Return the folder `name` of the cache; if it is missing, `fill(empty folder)` makes it first.

    Args:
        name: a file name that changes whenever the content would change.
        fill: writes the content; called under a lock, at most once at a time over all processes.
        room: bytes of free disk that `fill` needs, checked first (0: not checked).
        private: whether other users may not read it.

    Raises:
        AssetError: the disk is full, the cache can't be written or locked, or the shared cache is unreachable; also
            whatever `fill` raises.
    """
    cache = get_cache_directory()
    final = cache / name
    if final.is_dir():
        return final
    try:
        with FileLock(cache / f"{name}.lock", timeout=LOCK_SECONDS):
            if final.is_dir():  # another process made it while this one waited
                return final
            for rest in cache.glob(f"{name}.*.partial"):  # left by a killed run, whose pip may still write to it
                shutil.rmtree(rest, ignore_errors=True)
            free = shutil.disk_usage(cache).free
            if free < room:
                raise AssetError(
                    f"FP2013 {name} needs {room / 1e6:.0f} MB but {cache} has {free / 1e6:.0f} MB free; "
                    "free some space or set FEDPEFT_CACHE to another disk"
                )
            partial = cache / f"{name}.{os.getpid()}.partial"
            partial.mkdir(mode=0o700 if private else 0o777)
            shared = get_shared_cache()
            try:
                if shared is None or not shared.fetch(name, partial):
                    fill(partial)
                    if shared is not None:
                        shared.keep(name, partial)
                partial.rename(final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except Timeout:
        raise AssetError(
            f"FP2014 another process has held {cache / name}.lock for {LOCK_SECONDS / 60:.0f} minutes; end that "
            "process, or wait"
        ) from None
    except OSError as error:
        if is_disk_full(error):
            raise create_disk_error(name) from None
        raise AssetError(f"FP2015 can't write {name} to the cache {cache}: {error}") from None
    return final


def offer(folder: Path) -> None:
    """Copy a folder of this machine's cache into the shared cache if that lacks it; ignore other folders.

    Raises:
        AssetError: the shared cache can't be reached or written.
    """
    shared = get_shared_cache()
    if shared is None or folder.parent != get_cache_directory() or not folder.is_dir():
        return
    if not shared.has_folder(folder.name):
        shared.keep(folder.name, folder)


def find_local_folder(folder: Path) -> Path:
    """Return this machine's copy of a folder of another machine's cache, taken from the shared cache.

    If `folder` exists here, or there is no shared cache, return it unchanged.

    Raises:
        AssetError: see `get_cached_folder`.
    """
    if folder.is_dir() or get_shared_cache() is None:
        return folder

    def report_missing(_: Path) -> None:
        raise AssetError(f"FP2016 {folder.name} is neither on this machine nor in the shared cache")

    return get_cached_folder(folder.name, report_missing)


@contextmanager
def check_disk_space(name: str) -> Iterator[None]:
    """Turn a full disk while `name` is written to the cache into an AssetError.

    Raises:
        AssetError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise create_disk_error(name) from None
        raise


def create_disk_error(name: str) -> AssetError:
    """Return the error about a cache that has no space for `name`."""
    return AssetError(
        f"FP2017 the disk of {get_cache_directory()} is full while storing {name}; "
        "free some space or set FEDPEFT_CACHE to another disk"
    )


def create_hub_disk_error(name: str) -> AssetError:
    """Return the error about the hub's own cache that has no space for `name`."""
    return AssetError(
        f"FP2018 the disk is full while {name} is fetched from the hub; free some space, or set HF_HOME to a folder on "
        "another disk"
    )

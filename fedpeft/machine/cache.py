"""What runs share on one machine: folders and arrays, each made once, by whoever is first, and checked by its name.

Machines share them too where there is a `get_shared_cache`.
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

from fedpeft.errors import AssetError
from fedpeft.machine import files
from fedpeft.machine.mapped import iterate_pieces
from fedpeft.machine.shared_cache import get_shared_cache


def compute_key(**parts: Any) -> str:
    """A short hash of `parts` (anything JSON holds)."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def hash_files(folder: Path, names: tuple[str, ...]) -> str:
    """SHA-256 of the files in `folder` whose names match one of the glob patterns `names`."""
    digest = hashlib.sha256()
    for path in sorted(p for pattern in names for p in folder.glob(pattern)):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


class _ComputingError(Exception):
    """What has failed is what would have been kept, and not keeping it."""

    def __init__(self, error: OSError) -> None:
        self.error = error


def load_arrays(kind: str, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Named arrays, memory-mapped from the cache; computed and stored where they are missing.

    They are made of rows that may be private, so nobody else can read them.

    Raises:
        AssetError: the cache can't be written, or the arrays are another user's; also whatever `compute` raises.
    """

    def fill(empty: Path) -> None:
        try:
            made = compute()
        except OSError as error:  # of code that may be a user's own: no failure of the cache's disk
            if files.is_disk_full(error):
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
            f"FP2011 {target} belongs to another user, and so do its rows; set FEDPEFT_CACHE to a directory of your own"
        ) from None
    return {p.stem: np.load(p, mmap_mode="r", allow_pickle=False) for p in sorted(target.glob("*.npy"))}


def is_cached(kind: str, name: str) -> bool:
    """Whether `load_arrays` would read and not compute."""
    return (get_cache_directory() / f"{kind}-{name}").is_dir()


def _save(path: Path, array: np.ndarray) -> None:
    """As `np.save`; of an array that is itself a mapped file, piece by piece, so that none of it stays in memory."""
    if not isinstance(array, np.memmap):
        np.save(path, array, allow_pickle=False)
        return
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        for piece in iterate_pieces(array):
            file.write(piece.tobytes())


LOCK_SECONDS = 1800.0
"""How long to wait for another process that is fetching the same asset."""


def get_cache_directory() -> Path:
    """Where fetched and converted assets live: $FEDPEFT_CACHE, else $XDG_CACHE_HOME/fedpeft, else ~/.cache/fedpeft.

    Raises:
        AssetError: the directory can't be made.
    """
    chosen = os.environ.get("FEDPEFT_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    path = Path(chosen) if chosen else Path(shared, "fedpeft") if shared else Path("~/.cache/fedpeft")
    try:
        path = path.expanduser().absolute()
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
        raise AssetError(
            f"FP2012 can't make the cache {path} ({error}); set FEDPEFT_CACHE to a writable directory"
        ) from None
    return path


def get_cached_folder(name: str, fill: Callable[[Path], None], room: int = 0, private: bool = False) -> Path:
    """The folder `name` of the cache, made by `fill(empty folder)` if it is not there yet.

    Args:
        name: a file name that changes whenever what `fill` writes would change.
        fill: writes the content; called under a lock, at most once at a time over all processes.
        room: bytes of free disk that `fill` needs, checked first (0: not checked).
        private: whether nobody else on this machine may read it.

    Raises:
        AssetError: the disk is full or the cache can't be written or locked, or the shared one not reached; also
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
            for rest in cache.glob(f"{name}.*.partial"):  # of a killed run, whose pip may still write to it
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
            f"FP2014 another process holds {cache / name}.lock since {LOCK_SECONDS / 60:.0f} minutes"
        ) from None
    except OSError as error:
        if files.is_disk_full(error):
            raise create_disk_error(name) from None
        raise AssetError(f"FP2015 can't write {name} to the cache {cache}: {error}") from None
    return final


def offer(folder: Path) -> None:
    """Put a folder of this machine's cache into the shared one, where there is one and it lacks it; no other folder.

    Raises:
        AssetError: the shared cache can't be reached, or may not be written.
    """
    shared = get_shared_cache()
    if shared is None or folder.parent != get_cache_directory() or not folder.is_dir():
        return
    if not shared.has_folder(folder.name):
        shared.keep(folder.name, folder)


def find_local_folder(folder: Path) -> Path:
    """A folder of another machine's cache in this one's, from the shared cache; `folder` where it is here already, or
    nobody has it.

    Raises:
        AssetError: as `get_cached_folder`.
    """
    if folder.is_dir() or get_shared_cache() is None:
        return folder

    def nobody(_: Path) -> None:
        raise AssetError(f"FP2016 {folder.name} is neither on this machine nor in the shared cache")

    return get_cached_folder(folder.name, nobody)


@contextmanager
def check_disk_space(name: str) -> Iterator[None]:
    """Write something called `name` to the cache's disk.

    Raises:
        AssetError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if files.is_disk_full(error):
            raise create_disk_error(name) from None
        raise


def create_disk_error(name: str) -> AssetError:
    """What to say of a cache that has no room for `name`."""
    return AssetError(
        f"FP2017 the disk of {get_cache_directory()} is full while storing {name}; "
        "free some space or set FEDPEFT_CACHE to another disk"
    )


def create_hub_disk_error(name: str) -> AssetError:
    """What to say of the hub's own cache that has no room for `name`."""
    return AssetError(
        f"FP2018 the disk is full while {name} is fetched from the hub; free some space, or set HF_HOME to a folder on "
        "another disk"
    )

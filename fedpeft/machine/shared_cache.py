"""Cache in object storage, for machines without a common file system: folders, and pieces of larger ones.

`FEDPEFT_SHARED_CACHE` is a URL for fsspec (`s3://bucket/folder`, `gs://...`, `file:///...`); without it, nothing is
shared. A run looks there before it computes an entry, and stores there what it computed.

A folder is complete when its manifest exists, which is written last and contains the SHA-256 of every file. A file with
another digest counts as missing and is computed again. Names change with their content, so an entry is never replaced
by something else. Everyone who can write there is trusted like a user who can write to the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fedpeft.errors import AssetError, is_disk_full, require_extra

VARIABLE = "FEDPEFT_SHARED_CACHE"

MANIFEST = "manifest.json"

PLAIN = re.compile(r"[\w+@=-][\w.+@=-]*")
"""Legal part of a path inside a folder."""


def get_shared_cache() -> SharedCache | None:
    """Return the shared cache that the environment sets, or None.

    Raises:
        AssetError: the type of URL is unknown, or a package that fsspec needs for it is not installed.
    """
    url = os.environ.get(VARIABLE, "")
    return _open_cache(url.rstrip("/")) if url else None


@lru_cache(maxsize=4)
def _open_cache(url: str) -> SharedCache:
    import fsspec  # comes with torch

    if urlsplit(url).scheme in ("s3", "s3a"):
        require_extra("s3fs", "cloud", f"{VARIABLE}={url}")

    with _raise_cache_errors(url):
        makes_folders = {"auto_mkdir": True} if urlsplit(url).scheme in ("", "file", "local") else {}
        system, root = fsspec.core.url_to_fs(url, **makes_folders)
        return SharedCache(url, system, root.rstrip("/"))


@dataclass(frozen=True)
class SharedCache:
    """Storage behind a URL.

    Attributes:
        url: the URL.
        system: fsspec's file system.
        root: path of the URL in it.
    """

    url: str
    system: Any
    root: str

    def read(self, name: str) -> bytes | None:
        """Return an object that `write` stored; None if it is missing or damaged.

        Raises:
            AssetError: the storage can't be reached.
        """
        with _raise_cache_errors(self.url):
            try:
                found: bytes = self.system.cat_file(f"{self.root}/{name}")
            except FileNotFoundError:
                return None
        digest, data = found[:32], found[32:]
        return data if hashlib.sha256(data).digest() == digest else None

    def write(self, name: str, data: bytes) -> None:
        """Store an object.

        Raises:
            AssetError: the storage can't be reached or written.
        """
        with _raise_cache_errors(self.url):
            self.system.pipe_file(f"{self.root}/{name}", hashlib.sha256(data).digest() + data)

    def fetch(self, name: str, folder: Path) -> bool:
        """Copy a folder into an empty one; return False, with the folder empty again, if it is missing or damaged.

        Raises:
            AssetError: the storage can't be reached, or its manifest names files outside of the folder.
            OSError: the disk of `folder` is full.
        """
        text = self.read(f"{name}/{MANIFEST}")
        if text is None:
            return False
        for file, digest in self._parse_files(name, text).items():
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            with _raise_cache_errors(self.url, reading=True):
                try:
                    self.system.get_file(f"{self.root}/{name}/{file}", str(target))
                except FileNotFoundError:
                    return _empty_folder(folder)
            if _compute_digest(target) != digest:
                return _empty_folder(folder)
        return True

    def _parse_files(self, name: str, text: bytes) -> dict[str, str]:
        try:
            files = json.loads(text)["files"]
        except (ValueError, KeyError, TypeError):
            files = None
        if not isinstance(files, dict) or not all(
            all(map(PLAIN.fullmatch, file.split("/"))) and isinstance(digest, str) for file, digest in files.items()
        ):
            raise AssetError(
                f"FP2028 {self.url}/{name}/{MANIFEST} is not a manifest of this version; remove {name} there"
            )
        return files

    def has_folder(self, name: str) -> bool:
        """Return whether the folder exists.

        Raises:
            AssetError: the storage can't be reached.
        """
        return self.read(f"{name}/{MANIFEST}") is not None

    def keep(self, name: str, folder: Path) -> None:
        """Store a folder, also over a damaged one.

        Raises:
            AssetError: the storage can't be reached or written.
        """
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        if not all(all(map(PLAIN.fullmatch, file.split("/"))) for file in files):
            return  # other machines compute it themselves
        for file, path in files.items():
            with _raise_cache_errors(self.url):
                self.system.put_file(str(path), f"{self.root}/{name}/{file}")
        manifest = {"files": {file: _compute_digest(path) for file, path in files.items()}}
        self.write(f"{name}/{MANIFEST}", json.dumps(manifest).encode())


def _compute_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _empty_folder(folder: Path) -> bool:
    """Delete the content of a folder and return False."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return False


@contextmanager
def _raise_cache_errors(url: str, reading: bool = False) -> Iterator[None]:
    """Turn the errors of cloud libraries, which have no common type, into one AssetError.

    While `reading`, a full disk is this machine's, and stays an OSError.
    """
    try:
        yield
    except AssetError:
        raise
    except Exception as error:
        if reading and isinstance(error, OSError) and is_disk_full(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AssetError(
            f"FP2029 {VARIABLE}={url} can't be used ({type(error).__name__}: {reason}); correct or unset it"
        ) from None

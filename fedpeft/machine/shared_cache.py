"""What machines that share no file system share: folders of the cache, and pieces of larger ones, in object storage.

`FEDPEFT_SHARED_CACHE` is a URL that fsspec knows (`s3://bucket/folder`, `gs://...`, `file:///...`); unset: nothing is
shared. Whoever lacks something looks there before computing it, and puts there what it has computed. A folder counts
once its manifest is there, which is written last and holds the SHA-256 of every file; what does not agree with its
digest is taken for missing, and is computed anew. Names change with what they stand for, so nothing is ever replaced by
something else. Who may write there is trusted as one who may write to the cache.
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

from fedpeft.errors import AssetError, require_extra
from fedpeft.machine.files import is_disk_full

VARIABLE = "FEDPEFT_SHARED_CACHE"

MANIFEST = "manifest.json"

PLAIN = re.compile(r"[\w+@=-][\w.+@=-]*")
"""A part of a path inside a folder."""


def get_shared_cache() -> SharedCache | None:
    """The one that the environment names; None: there is none.

    Raises:
        AssetError: what fsspec needs for this kind of URL is not installed, or nobody knows such a URL.
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
    """The storage behind a URL.

    Attributes:
        system: fsspec's.
        root: path of the URL in it.
    """

    url: str
    system: Any
    root: str

    def read(self, name: str) -> bytes | None:
        """An object as `write` was given it; None: it is not there, or damaged.

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
        """Put an object there.

        Raises:
            AssetError: the storage can't be reached, or may not be written.
        """
        with _raise_cache_errors(self.url):
            self.system.pipe_file(f"{self.root}/{name}", hashlib.sha256(data).digest() + data)

    def fetch(self, name: str, folder: Path) -> bool:
        """Copy a folder into an empty one; False: it is not there, or damaged, and `folder` is empty again.

        Raises:
            AssetError: the storage can't be reached, or its manifest names files outside of the folder.
            OSError: there is no room in `folder`.
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
            raise AssetError(f"FP2028 {self.url}/{name}/{MANIFEST} is no manifest of this version; remove {name} there")
        return files

    def has_folder(self, name: str) -> bool:
        """Whether there is such a folder.

        Raises:
            AssetError: the storage can't be reached.
        """
        return self.read(f"{name}/{MANIFEST}") is not None

    def keep(self, name: str, folder: Path) -> None:
        """Copy a folder there, over one that is damaged.

        Raises:
            AssetError: the storage can't be reached, or may not be written.
        """
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        if not all(all(map(PLAIN.fullmatch, file.split("/"))) for file in files):
            return  # whoever wants it makes it
        for file, path in files.items():
            with _raise_cache_errors(self.url):
                self.system.put_file(str(path), f"{self.root}/{name}/{file}")
        manifest = {"files": {file: _compute_digest(path) for file, path in files.items()}}
        self.write(f"{name}/{MANIFEST}", json.dumps(manifest).encode())


def _compute_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _empty_folder(folder: Path) -> bool:
    """False, with nothing left in the folder."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return False


@contextmanager
def _raise_cache_errors(url: str, reading: bool = False) -> Iterator[None]:
    """What clouds' libraries raise has no common type: all of it becomes one sentence.

    While `reading`, a full disk is this machine's, and an OSError stays one.
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
            f"FP2029 {VARIABLE}={url} can't be used ({type(error).__name__}: {reason}); mend or unset it"
        ) from None

"""Files that a kill leaves complete, and that others can't read, from the first byte, if they are private."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from fedpeft.errors import RunError


def read(file: Path) -> bytes:
    """Return the content of a regular file; a pipe or device would block, so it is rejected.

    Raises:
        OSError: the file does not exist, is not a regular file, or can't be read.
    """
    with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened_file:
        if not stat.S_ISREG(os.fstat(opened_file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(file))
        return opened_file.read()


def check_regular_file(file: Path) -> Path:
    """Return the path of a regular file, for a library that would block on a pipe beyond what a signal can stop.

    Raises:
        OSError: the file does not exist, or is a pipe or a device.
    """
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(file))
    return file


def copy(file: Path, target: Path) -> None:
    """Copy a regular file to `target`, which does not exist; reject a symbolic link, a pipe or a device.

    Raises:
        OSError: the file does not exist, or can't be read or written.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with open(descriptor, "rb") as source, open(target, "xb") as copied:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(file))
        shutil.copyfileobj(source, copied)


def find_links(path: Path) -> Iterator[Path]:
    """Yield each symbolic link at `path` or below it. A hard link is indistinguishable from the file itself."""
    if path.is_symlink():
        yield path
        return
    for folder, folders, names in os.walk(path):
        yield from (one for name in (*folders, *names) if (one := Path(folder, name)).is_symlink())


def parse_json(text: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is not JSON in UTF-8, is nested too deep, or contains half of a character, which can't be
            printed.
    """
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return found


def read_json(file: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        OSError: see `read`.
        ValueError: see `parse_json`.
    """
    return parse_json(read(file))


ZEROS = 1 << 20
"""Number of bytes per write if the system can't reserve disk space."""


def reserve(descriptor: int, size: int) -> None:
    """Give an empty file `size` bytes of zeros, with disk space for all of them.

    macOS lacks `posix_fallocate`. A file that is only extended has no space reserved. A full disk would then end the
    process when a mapping of the file is written.

    Raises:
        OSError: the disk is full, or the file can't be written.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for start in range(0, size, ZEROS):
        os.pwrite(descriptor, bytes(min(ZEROS, size - start)), start)


def flush_data(descriptor: int) -> None:
    """Wait until a file's content is on the disk; macOS lacks `fdatasync`.

    Raises:
        OSError: it can't be written.
    """
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(descriptor)


def make_private_folder(folder: Path) -> None:
    """Create a folder of mode 0700, or give it that mode.

    Raises:
        OSError: it can't be created.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)


def open_for_writing(file: Path, mode: str, private: bool) -> IO[bytes]:
    """Open a file to write ("wb") or to append ("ab"); a `private` one has mode 0600.

    Raises:
        OSError: it can't be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if mode == "ab" else os.O_TRUNC)
    descriptor = os.open(file, flags, 0o600 if private else 0o666)
    if private:
        os.fchmod(descriptor, 0o600)
    return open(descriptor, mode)


def replace(file: Path, content: bytes, private: bool = False) -> None:
    """Write a whole file and flush it to the disk; on an error, the old file stays.

    Raises:
        OSError: the disk is full or can't be written.
    """
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        with open_for_writing(partial, "wb", private) as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, file)
        sync(file.parent)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def append(file: Path, content: bytes, private: bool = False) -> None:
    """Append to a file, perhaps a new one, and flush it to the disk; on an error, it stays as it was.

    Raises:
        OSError: the disk is full or can't be written.
    """
    before = file.stat().st_size if file.exists() else None
    try:
        with open_for_writing(file, "ab", private) as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        if not before:  # flush the new file's name, too
            sync(file.parent)
    except OSError:
        with suppress(OSError):  # a part may have been written
            file.unlink() if before is None else os.truncate(file, before)
        raise


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk.

    Raises:
        OSError: the file does not exist, or the disk can't be written.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def raise_write_errors(what: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into one RunError about `what`.

    Raises:
        RunError: it can't be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk by the latter
        raise RunError(f"FP5102 {what} can't be written: {error}") from error

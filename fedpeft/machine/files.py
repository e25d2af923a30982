"""Files that a kill leaves whole, and that others can't read where they are private, from the first byte."""

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
    """The content of a file; a pipe or a device, which would be waited for, is refused.

    Raises:
        OSError: there is none, it is none, or it can't be read.
    """
    with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened_file:
        if not stat.S_ISREG(os.fstat(opened_file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(file))
        return opened_file.read()


def check_regular_file(file: Path) -> Path:
    """The file, for a library that would wait for a pipe's other end, beyond what a signal can stop.

    Raises:
        OSError: there is none, or it is a pipe or a device.
    """
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(file))
    return file


def copy(file: Path, target: Path) -> None:
    """Copy a file to `target`, which does not exist; a symbolic link, a pipe or a device is refused.

    Raises:
        OSError: there is no such file, or it can't be read or written.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with open(descriptor, "rb") as source, open(target, "xb") as copied:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(file))
        shutil.copyfileobj(source, copied)


def find_links(path: Path) -> Iterator[Path]:
    """Yield each symbolic link at `path` or below it. A hard link can't be told from the file itself."""
    if path.is_symlink():
        yield path
        return
    for folder, folders, names in os.walk(path):
        yield from (one for name in (*folders, *names) if (one := Path(folder, name)).is_symlink())


def parse_json(text: bytes) -> Any:
    """The value that JSON holds.

    Raises:
        ValueError: it is no JSON in UTF-8, nested too deep, or holds half of a character, which nothing could print.
    """
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return found


def read_json(file: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: as `read`.
        ValueError: as `parse_json`.
    """
    return parse_json(read(file))


ZEROS = 1 << 20
"""Bytes that are written at a time where the system can't reserve a file's room."""


def reserve(descriptor: int, size: int) -> None:
    """Give an empty file `size` bytes of zeros that have room on the disk, however the system does that.

    macOS lacks `posix_fallocate`. A file that is only lengthened has no room there, and a full disk would show when a
    mapping of it is written, which ends the process.

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
    """Make a folder of mode 0700, or give it that mode.

    Raises:
        OSError: it can't be made.
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
    """Write a whole file and bring it to the disk, or leave the one that is there.

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
    """Append to a file, perhaps a new one, and bring it to the disk, or leave it as it was.

    Raises:
        OSError: the disk is full or can't be written.
    """
    before = file.stat().st_size if file.exists() else None
    try:
        with open_for_writing(file, "ab", private) as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        if not before:  # its name, too
            sync(file.parent)
    except OSError:
        with suppress(OSError):  # of what did not fit a part may be there
            file.unlink() if before is None else os.truncate(file, before)
        raise


def sync(path: Path) -> None:
    """Bring to the disk what has been written to a file, or which names a folder has.

    Raises:
        OSError: there is no such file, or the disk can't be written.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def raise_write_errors(what: Path) -> Iterator[None]:
    """A full disk, or one that can't be written, is one clear RunError about `what`."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter: a full disk, as safetensors tells it
        raise RunError(f"FP5102 {what} can't be written: {error}") from error


NO_ROOM = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "Not enough disk space")
"""What is said of a full disk in words; the last by the library `datasets`."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it comes from, says that a disk is full or a quota used up; libraries use words."""
    came: BaseException | None = error
    while came is not None:
        full = isinstance(came, OSError) and came.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or any(words in str(came) for words in NO_ROOM):
            return True
        came = came.__cause__ or came.__context__
    return False

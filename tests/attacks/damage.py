"""What a disk, an editor or a hasty hand can do to a file, for tests: each makes one file of a folder another thing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "inside").write_text("x")


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _text(content: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(content) and None


def _halved(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _lines_halved(file: Path) -> None:
    """Whole lines are lost, or the second half of the only one."""
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[: max(1, len(lines) // 2)]) if len(lines) > 1 else content[: len(content) // 2])


def _flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    for at in range(len(content) // 3, len(content), max(1, len(content) // 3)):
        content[at] ^= 0x11
    file.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "folder": _folder,
    "pipe": _pipe,
    "gone": Path.unlink,
    "empty": _text(b""),
    "halved": _halved,
    "lines halved": _lines_halved,
    "flipped": _flipped,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)) and None,
    "list": _text(b"[1]\n"),
    "object": _text(b"{}\n"),
    "nested": _text(b'{"a": {"b": [1, null, "\\ud800"]}}\n'),
    "deep": _text(b"[" * 100_000 + b"\n"),
    "number": _text(b"7\n"),
    "no utf-8": _text(b"\xff\xfe\x80\n"),
    "links to itself": lambda file: (file.unlink(), file.symlink_to(file))[0],
}


def files_in(folder: Path) -> list[str]:
    """Return the names of all files that can be damaged, without locks."""
    found = (f for f in folder.rglob("*") if f.is_file() and not f.name.endswith(".lock"))
    return sorted(str(f.relative_to(folder)) for f in found)


def damaged(run: Path, to: Path, name: str, damage: str) -> Path:
    """Copy the folder `run` with one file damaged, and return the copy."""
    shutil.copytree(run, to)
    DAMAGES[damage](to / name)
    return to

"""The files of a run: one JSON line per round and per client, flushed as they are written; a summary at the end."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fedpeft.errors import RunError

LINES = ("rounds.jsonl", "clients.jsonl")
CONFIDENTIAL = ("clients.jsonl", "clients.npz")
"""In runs with privacy these get mode 0600: they say who took part, which epsilon does not cover."""


@contextmanager
def writing(what: Path) -> Iterator[None]:
    """A full disk, or one that can't be written, is one clear RunError about `what`."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter: a full disk, as safetensors tells it
        raise RunError(f"{what} can't be written: {error}") from error


class Records:
    """The record files in one run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def append(self, name: str, *entries: dict[str, Any]) -> None:
        """Append JSON lines and flush them.

        Raises:
            RunError: the disk is full or can't be written.
        """
        text = "".join(json.dumps(_plain(entry), allow_nan=False) + "\n" for entry in entries)
        try:
            with open(self.folder / name, "a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise RunError(f"{self.folder / name} can't be written: {error.strerror}") from error

    def hide(self) -> None:
        """Take the right to read what is confidential from others."""
        (self.folder / LINES[1]).touch(0o600)
        for name in CONFIDENTIAL:
            if (self.folder / name).exists():
                (self.folder / name).chmod(0o600)

    def read(self, name: str) -> list[dict[str, Any]]:
        """The lines of a file; a last line that a kill cut short is left out."""
        path = self.folder / name
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1] if line]

    def offsets(self) -> dict[str, int]:
        """The lengths of the line files, in bytes."""
        return {n: (self.folder / n).stat().st_size for n in LINES if (self.folder / n).exists()}

    def cut(self, offsets: dict[str, int]) -> None:
        """Cut the line files back to what they were."""
        for name in LINES:
            path = self.folder / name
            if path.exists():
                os.truncate(path, offsets.get(name, 0))

    def write(self, name: str, text: str) -> None:
        """Write a whole file, or leave the one that is there.

        Raises:
            RunError: the disk is full or can't be written.
        """
        path = self.folder / name
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        except OSError as error:
            raise RunError(f"{path} can't be written: {error.strerror}") from error

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file."""
        self.write(name, json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """What JSON holds: no NaN or infinity (null), no numpy or torch numbers."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

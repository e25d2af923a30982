"""The record files of a run: one JSON line per round and client, written once a round is safe; a summary at the end."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.errors import RunError
from fedpeft.machine import files
from fedpeft.machine.files import raise_write_errors
from fedpeft.machine.json_values import convert_to_plain

LINES = ("rounds.jsonl", "clients.jsonl", "disagreement.jsonl", "tasks.jsonl", "evaluations.jsonl", "hooks.jsonl")
CONFIDENTIAL = (
    "clients.jsonl",
    "clients.npz",
    "disagreement.jsonl",
    "hooks.jsonl",
    "made_of.json",
    "predictions.npz",
)
"""Files with mode 0600 in runs with privacy or real clients.

They contain who took part, with which examples, or the model's scores on single examples, which epsilon does not cover.
"""


class Records:
    """The record files in one run's folder; in a `private` run, others can't read the confidential ones."""

    def __init__(self, folder: Path, private: bool = False) -> None:
        """Hold the folder; open nothing."""
        self.folder = folder
        self.private = private

    def append(self, name: str, *entries: dict[str, Any]) -> None:
        """Append JSON lines.

        Raises:
            RunError: the disk is full or can't be written.
        """
        text = "".join(json.dumps(convert_to_plain(entry), allow_nan=False) + "\n" for entry in entries)
        try:
            with files.open_for_writing(self.folder / name, "ab", self._is_hidden(name)) as file:
                file.write(text.encode())
        except OSError as error:
            raise RunError(f"FP5102 {self.folder / name} can't be written: {error.strerror}") from error

    def _is_hidden(self, name: str) -> bool:
        return self.private and name in CONFIDENTIAL

    def read(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of a file, without a last line that a kill cut short.

        Raises:
            RunError: a line is damaged, or the file can't be read.
        """
        path = self.folder / name
        if not path.exists():
            return []
        try:
            lines = files.read(path).split(b"\n")
        except PermissionError as error:
            raise RunError(
                f"FP5189 only its owner, who started the run, may read {path}; run the command as that user"
            ) from error
        except OSError as error:
            raise RunError(
                f"FP5190 {path} can't be read: {error.strerror}; put the file back, or start a new run"
            ) from error
        found = []
        for number, line in enumerate(lines[:-1], start=1):
            try:
                entry = files.parse_json(line)
            except ValueError:
                entry = None
            if not isinstance(entry, dict):
                raise RunError(
                    f"FP5191 line {number} of {path} is damaged: it is not a JSON object; remove that line, or "
                    "start a new run"
                )
            found.append(entry)
        return found

    def sync(self) -> None:
        """Sync all lines to the disk.

        Raises:
            RunError: the disk is full or can't be written.
        """
        for name in LINES:
            path = self.folder / name
            if path.exists():
                with raise_write_errors(path):
                    files.sync(path)
        with raise_write_errors(self.folder):
            files.sync(self.folder)

    def get_offsets(self) -> dict[str, int]:
        """Return the lengths of the line files, in bytes."""
        return {n: (self.folder / n).stat().st_size for n in LINES if (self.folder / n).exists()}

    def cut(self, offsets: dict[str, int]) -> None:
        """Truncate the line files to earlier lengths.

        Raises:
            RunError: one of them has lost lines.
        """
        for name in LINES:
            path, length = self.folder / name, offsets.get(name, 0)
            if path.exists() and not path.is_file():
                raise RunError(f"FP5192 {path} is no longer a file; put the file back, or start a new run")
            size = path.stat().st_size if path.exists() else 0
            if size < length:
                raise RunError(
                    f"FP5193 {path} has {size} bytes, and {length} when the checkpoint was written: lines are lost; "
                    "put the file back, or start a new run"
                )
            if path.exists():
                with raise_write_errors(path):
                    os.truncate(path, length)

    def write(self, name: str, text: str) -> None:
        """Write a whole file, or leave the existing one.

        Raises:
            RunError: the disk is full or can't be written.
        """
        path = self.folder / name
        with raise_write_errors(path):
            files.replace(path, text.encode(), self._is_hidden(name))

    def write_arrays(self, name: str, **arrays: np.ndarray) -> None:
        """Write arrays by name, compressed.

        Raises:
            RunError: the disk is full or can't be written.
        """
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        with raise_write_errors(self.folder / name):
            files.replace(self.folder / name, content.getvalue(), self._is_hidden(name))

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file."""
        self.write(name, json.dumps(convert_to_plain(content), indent=2, allow_nan=False) + "\n")

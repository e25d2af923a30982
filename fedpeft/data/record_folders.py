"""Folders of records: the splits of a data set, or a file for each client."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.data.record_files import SUFFIXES, format_note, get_suffix, is_saved, locate_record, read_records
from fedpeft.data.table_format import DETECT, TableFormat
from fedpeft.errors import DataError

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""What the files and folders of a split are called."""

OWNER = "file"
"""The column that says whose row it is where each client has a file of its own."""


@dataclass(frozen=True)
class Splits:
    """Where a data set's rows are; None: there is no such part."""

    train: Path
    validation: Path | None = None
    test: Path | None = None


def get_stem(path: Path) -> str:
    """A file's name without what says how it is read."""
    suffix = get_suffix(path)
    return path.name[: path.name.lower().rindex(suffix)] if suffix else path.name


def list_visible(folder: Path) -> list[Path]:
    """What is in a folder, by name, without hidden files; DataError where it can't be read."""
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise DataError(f"FP3126 can't read the folder {folder}: {error.strerror}") from None


def _split_name(path: Path) -> str:
    """What says which split an entry is: its name, without the hub's number of a part, as in train-00000-of-00001."""
    return re.sub(r"-\d{5}-of-\d{5}$", "", get_stem(path).lower())


def find_splits(path: Path) -> Splits:
    """The splits in a folder that has a file or folder called train; else all of `path` is for training.

    Raises:
        DataError: two files claim to be the same split, or there are test or validation rows, and nothing called train.
    """
    if not path.is_dir() or is_saved(path):
        return Splits(path)
    found: dict[str, Path] = {}
    entries = [p for p in list_visible(path) if p.is_dir() or get_suffix(p)]
    for split, names in SPLITS.items():
        called = [p for p in entries if _split_name(p) in names]
        if len(called) > 1:
            parts = all(_split_name(p) != get_stem(p).lower() for p in called)
            remedy = f"put its parts into a folder called {split}" if parts else "keep one"
            raise DataError(
                f"FP3127 {path} has more than one {split} split: {', '.join(p.name for p in called)}; {remedy}"
            )
        if called:
            found[split] = called[0]
    if found and "train" not in found:
        one = next(iter(found.values()))
        raise DataError(
            f"FP3128 {path} has {one.name} and nothing called train, and would be trained on the rows of both; call "
            "the training rows train, or name their file"
        )
    return Splits(**found) if found else Splits(path)


def list_client_files(folder: Path) -> list[Path]:
    """The files of records in a folder, one a client.

    Raises:
        DataError: there are none.
    """
    found = [p for p in list_visible(folder) if get_suffix(p) and p.is_file()]
    if not found:
        raise DataError(
            f"FP3129 {folder} has no files of rows ({', '.join(SUFFIXES)}, or with .gz), no pictures in folders by "
            "class, and is no data set written by save_to_disk; legal are these"
        )
    names = [get_stem(p) for p in found]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise DataError(f"FP3130 {folder} has two files of the client {twice[0]!r}; keep one of them")
    return found


def read_records_below(path: Path, given: TableFormat = DETECT) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a file or saved data set; of a folder, those of its files, with the column `OWNER`: whose."""
    if not path.is_dir() or is_saved(path) or get_suffix(path):
        yield from read_records(str(path), given)
        return
    for file in list_client_files(path):
        for place, record in read_records(str(file), given):
            yield locate_record(place, file.name), record | {OWNER: get_stem(file)}


def format_notes(path: Path, given: TableFormat = DETECT) -> list[str]:
    """Return what was detected of the formats of a file, or of the files in a folder, in a line for each format.

    Raises:
        DataError: a file fits several formats.
    """
    path = path.expanduser()
    files = [path]
    if path.is_dir():
        files = [] if is_saved(path) else [file for file in list_visible(path) if get_suffix(file) and file.is_file()]
    first: dict[str, str] = {}
    alike: Counter[str] = Counter()
    for note in filter(None, (format_note(file, given) for file in files)):
        settings = note.rpartition(": ")[2]
        alike[settings] += 1
        first.setdefault(settings, note)
    return [
        first[settings] if count == 1 else f"detected in {count} files of {path.name}: {settings}"
        for settings, count in alike.items()
    ]

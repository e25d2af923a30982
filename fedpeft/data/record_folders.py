"""Folders of records: the splits of a dataset, or one file per client."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from fedpeft.data.record_files import SUFFIXES, format_note, get_suffix, is_saved, locate_record, read_records
from fedpeft.data.table_format import DETECT, TableFormat
from fedpeft.errors import DataError

T = TypeVar("T")
U = TypeVar("U")

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""Names of the files and folders of each split."""

OWNER = "file"
"""Column of the owner if each client has a file of its own."""


@dataclass(frozen=True)
class Splits(Generic[T]):
    """Paths, or records, of a dataset's splits; None: there is no such split."""

    train: T
    validation: T | None = None
    test: T | None = None

    def convert(self, function: Callable[[T], U]) -> Splits[U]:
        """Return what `function` makes of each split that exists, in their order."""
        train = function(self.train)
        validation, test = (None if split is None else function(split) for split in (self.validation, self.test))
        return Splits(train, validation, test)


def get_stem(path: Path) -> str:
    """Return a file's name without the ending that decides how it is read."""
    suffix = get_suffix(path)
    return path.name[: path.name.lower().rindex(suffix)] if suffix else path.name


def list_visible(folder: Path) -> list[Path]:
    """Return the entries of a folder by name, without hidden files; raise DataError if it can't be read."""
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise DataError(f"FP3126 can't read the folder {folder}: {error.strerror}") from None


def _get_split_name(path: Path) -> str:
    """Return the part of a name that identifies the split, without the hub's numbers, as in train-00000-of-00001."""
    return re.sub(r"-\d{5}-of-\d{5}$", "", get_stem(path).lower())


def group_by_split(entries: Sequence[T], get_name: Callable[[T], str]) -> dict[str, list[T]]:
    """Return the entries of each split that has any; those with other names are left out.

    Splits are in the order of `SPLITS`, and the entries of a split in that of `entries`.
    """
    groups = {split: [entry for entry in entries if get_name(entry) in names] for split, names in SPLITS.items()}
    return {split: group for split, group in groups.items() if group}


def find_splits(path: Path) -> Splits[Path]:
    """Return the splits in a folder that has a file or folder called train; otherwise, all of `path` is for training.

    Raises:
        DataError: two entries have names of the same split, or nothing is called train beside another split.
    """
    if not path.is_dir() or is_saved(path):
        return Splits(path)
    groups = group_by_split([p for p in list_visible(path) if p.is_dir() or get_suffix(p)], _get_split_name)
    for split, group in groups.items():
        if len(group) > 1:
            parts = all(_get_split_name(p) != get_stem(p).lower() for p in group)
            remedy = f"put its parts into a folder called {split}" if parts else "keep one"
            raise DataError(
                f"FP3127 {path} has more than one {split} split: {', '.join(p.name for p in group)}; {remedy}"
            )
    if not groups:
        return Splits(path)
    if "train" not in groups:
        (one,) = next(iter(groups.values()))
        raise DataError(
            f"FP3128 {path} has {one.name} but nothing called train, so all of it would be trained on; rename "
            "the training file to train, or name it"
        )
    return Splits(**{split: entry for split, (entry,) in groups.items()})


def list_client_files(folder: Path) -> list[Path]:
    """Return the files of records in a folder, one per client.

    Raises:
        DataError: there are none, or two of the same client.
    """
    found = [p for p in list_visible(folder) if get_suffix(p) and p.is_file()]
    if not found:
        raise DataError(
            f"FP3129 {folder} contains none of these: files of rows ({', '.join(SUFFIXES)}, or with .gz), images in "
            "folders by class, a dataset written by save_to_disk"
        )
    names = [get_stem(p) for p in found]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise DataError(f"FP3130 {folder} has two files of the client {twice[0]!r}; keep one of them")
    return found


def read_records_below(path: Path, given: TableFormat = DETECT) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the records of a file, a saved dataset, or the files of a folder.

    The column `OWNER` names the file of a record in a folder.
    """
    if not path.is_dir() or is_saved(path) or get_suffix(path):
        yield from read_records(str(path), given)
        return
    for file in list_client_files(path):
        for place, record in read_records(str(file), given):
            yield locate_record(place, file.name), record | {OWNER: get_stem(file)}


def format_notes(path: Path, given: TableFormat = DETECT) -> list[str]:
    """Return one line for each unusual format that was detected in a file, or in the files of a folder.

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

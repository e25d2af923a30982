"""Datasets that a Python program passes to a run, as a part like any other."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.cached_rows import hash_rows
from fedpeft.data.datasets.file import File
from fedpeft.data.image_folders import FILE_NAME, FORMATS, raise_image_errors
from fedpeft.data.owner_columns import OWNERS
from fedpeft.data.record_files import Record, RecordTable, TablePlace, read_dataset_rows
from fedpeft.data.record_folders import SPLITS, Splits, group_by_split
from fedpeft.data.rows import Dataset
from fedpeft.data.square_pictures import crop_to_square
from fedpeft.data.tagged_records import TASK as TOKEN_LABELS
from fedpeft.errors import DataError
from fedpeft.parts import setting

NAME = "in_memory"
TEXT, LABEL = "text", "label"
"""Columns of texts and labels; the other columns are those of the part `file`."""

RENAME = "dataset.rename_column(COLUMN, 'ROLE')"
"""How a user names a column of the `datasets` library; pandas has `rename`."""


def convert_to_dataset(given: Any) -> Dataset:
    """Return the `Dataset` for any of the values that a user may pass as one.

    These values are legal:

    - a `Dataset`, or a part that loads one;
    - a `datasets.Dataset`, a pandas `DataFrame`, or a sequence of mappings, one per example;
    - a `datasets.DatasetDict`, or a mapping, from train and perhaps validation and test to one of these;
    - a sequence of (texts, labels) pairs, one per client.

    Columns are those of the part `file`: text and label, a column of owners, or instruction data. A `datasets.Dataset`
    may have a column of images instead of texts.

    Raises:
        DataError: the value has none of these types, or its examples can't be used.
    """
    if isinstance(given, Dataset):
        return given
    if dataclasses.is_dataclass(given) and not isinstance(given, type) and hasattr(given, "load"):
        loaded: Dataset = given.load()
        return loaded
    splits, unused = _find_splits(given)
    splits = splits.convert(lambda split: (split[0], _keep_encoded(split[1])))
    tables = splits.convert(lambda split: _create_table(*split))
    first, images = tables.train.first, splits.convert(lambda split: _find_image_column(*split))
    part = File(path=NAME)
    if images.train is None and LABEL not in first and part.choose_reading(first) is None:
        _check_no_label(first)
        part = dataclasses.replace(part, label=None)
    pixels = None if images.train is None else _create_image_reader(splits, images, part.side)
    made = part.build_dataset(NAME, tables, RENAME, pixels)
    return dataclasses.replace(made, notes=(*made.notes, *unused))


Split = tuple[str, Any]
"""A split's name in messages, and its examples in one of the legal types."""


def _find_splits(given: Any) -> tuple[Splits[Split], tuple[str, ...]]:
    """Return the splits, and a line about those that no run uses.

    Raises:
        DataError: there is no training split, or two are called so.
    """
    if not isinstance(given, Mapping):
        return Splits(("dataset", given)), ()
    known = [name for name in chain.from_iterable(SPLITS.values()) if name in given]
    groups = group_by_split(known, str)
    if twice := next((names for names in groups.values() if len(names) > 1), None):
        raise DataError(f"FP3196 dataset has more than one {twice[0]} split: {', '.join(twice)}; keep one")
    if "train" not in groups:
        raise DataError(
            f"FP3197 dataset has no split called train; it has: {', '.join(map(str, given)) or 'none'}; rename the "
            "training split to train"
        )
    splits = {split: (f"dataset[{name!r}]", given[name]) for split, (name,) in groups.items()}
    unused = [str(name) for name in given if name not in known]
    return Splits(**splits), (f"splits that no run uses: {', '.join(unused)}",) if unused else ()


def _create_table(name: str, given: Any) -> RecordTable:
    """Return the records of a split.

    Raises:
        DataError: the split has no legal type, or is streamed.
    """
    if _is_of_library(given, "IterableDataset", "IterableDatasetDict"):
        raise DataError(
            f"FP3198 {name} is streamed, but clients need all examples; load it without streaming=True, or take some: "
            "datasets.Dataset.from_list(list(dataset.take(1000)))"
        )
    if _is_of_library(given, "Dataset"):
        return RecordTable(name, partial(_read_dataset, name, given))
    if type(given).__name__ == "DataFrame" and hasattr(given, "to_dict"):
        return RecordTable(name, partial(_read_frame, given))
    if isinstance(given, Sequence) and not isinstance(given, str):
        records = _build_records(given) if all(map(_is_client_pair, given)) else given
        if all(isinstance(record, Mapping) for record in records):
            return RecordTable(name, lambda: ((f"row {number}", dict(row)) for number, row in enumerate(records)))
    raise DataError(
        f"FP3060 {name} must be a text, a Dataset, a datasets.Dataset, a pandas DataFrame, mappings with text and "
        f"label, a mapping from splits to these, or one pair (texts, labels) per client; got {type(given).__name__}"
    )


def _is_client_pair(row: Any) -> bool:
    """Return whether a row is one client's pair (texts, labels)."""
    return isinstance(row, tuple) and len(row) == 2 and all(isinstance(column, Sized) for column in row)


def _is_of_library(given: Any, *names: str) -> bool:
    """Return whether a value is an instance of a named class of the `datasets` library, without importing it."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(given, tuple(getattr(library, name, ()) for name in names))


def _keep_encoded(given: Any) -> Any:
    """Return a `datasets.Dataset` that does not decode images and sounds, and any other value as it is.

    The library decodes every format that Pillow knows, of which some start programs, and fetches files by their URL.
    """
    if not _is_of_library(given, "Dataset"):
        return given
    table = given.with_format(None)
    for column, feature in given.features.items():
        if hasattr(feature, "decode"):
            table = table.cast_column(column, dataclasses.replace(feature, decode=False))
    return table


def _read_dataset(name: str, given: Any) -> Iterator[Record]:
    """Yield the rows of a `datasets.Dataset`, counted from 0; an image is named by its row."""
    column = _find_image_column(name, given)
    table = given if column is None else given.remove_columns(column)
    if column is not None and not table.column_names:  # the library iterates over no column not at all
        yield from (
            (TablePlace(f"row {number}"), {FILE_NAME: f"row {number} of {name}"}) for number in range(len(given))
        )
        return
    for number, (place, record) in enumerate(read_dataset_rows(name, table, first_row=0)):
        yield place, record if column is None else record | {FILE_NAME: f"row {number} of {name}"}


def _read_frame(frame: Any) -> Iterator[Record]:
    records = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return ((TablePlace(f"row {number}"), record) for number, record in enumerate(records))


def _check_no_label(first: Mapping[str, Any]) -> None:
    """Reject examples with a column beside the text that may hold labels under another name.

    Raises:
        DataError: there is such a column.
    """
    others = [str(column) for column in first if column != TEXT and str(column).strip().lower() not in OWNERS]
    if TEXT in first and others:
        raise DataError(
            f"FP3199 dataset has no column {LABEL!r}, but {', '.join(others)}; rename the column of labels: "
            f"{RENAME.replace('ROLE', LABEL)}, or drop these columns to train a language model on the texts"
        )


def _find_image_column(name: str, given: Any) -> str | None:
    """Return the column of images if the examples are images; None: they are texts.

    Raises:
        DataError: there are several such columns.
    """
    features = given.features if _is_of_library(given, "Dataset") else {}
    columns = [column for column, feature in features.items() if type(feature).__name__ == "Image"]
    if not columns or TEXT in features:
        return None
    if len(columns) > 1:
        raise DataError(f"FP3200 {name} has several columns of images: {', '.join(columns)}; keep one")
    return str(columns[0])


def _create_image_reader(
    splits: Splits[Split], columns: Splits[str | None], side: int
) -> Callable[[list[str]], NDArray[np.uint8]]:
    """Return a function that reads images, named as by `_read_dataset`, as uint8 (images, side, side, 3)."""
    places: dict[str, tuple[Any, int]] = {}
    for split, column in (
        (splits.train, columns.train),
        (splits.validation, columns.validation),
        (splits.test, columns.test),
    ):
        if split is not None:
            name, table = split
            if column is None:
                raise DataError(f"FP3201 {name} has no column of images, but the training examples have one")
            images = table.select_columns(column).rename_column(column, FILE_NAME)
            places |= {f"row {number} of {name}": (images, number) for number in range(len(images))}

    def read(names: list[str]) -> NDArray[np.uint8]:
        made = np.empty((len(names), side, side, 3), np.uint8)
        for i, name in enumerate(names):
            images, number = places[name]
            with raise_image_errors(name), _open_image(images[number][FILE_NAME]) as image:
                mode = images.features[FILE_NAME].mode
                made[i] = crop_to_square(image.convert(mode) if mode else image, side)
        return made

    return read


def _open_image(encoded: Mapping[str, Any] | None) -> Any:
    """Open an image of a `datasets.Dataset`, given its bytes or the path of its file, in one of `FORMATS`.

    Raises:
        OSError: it is missing or damaged, or has another format.
    """
    from PIL import Image

    content, path = (None, None) if encoded is None else (encoded["bytes"], encoded["path"])
    if content is None and not (path and Path(path).is_file()):  # reading a pipe would block
        raise OSError(f"there is no file {path}" if path else "it is missing")
    source: Any = path if content is None else BytesIO(content)
    return Image.open(source, formats=FORMATS)


def _build_records(clients: Sequence[tuple[Sequence[str], Sequence[str | int]]]) -> list[dict[str, Any]]:
    digits = len(str(len(clients)))  # owners are sorted by name
    rows = []
    for number, (texts, labels) in enumerate(clients):
        if len(texts) != len(labels):
            raise DataError(
                f"FP3061 client {number} has {len(texts)} texts and {len(labels)} labels; give one label for each text"
            )
        owner = f"client {number:0{digits}}"
        rows += [{"text": text, "label": label, "owner": owner} for text, label in zip(texts, labels, strict=True)]
    return rows


def create_part(dataset: Dataset) -> tuple[type, str]:
    """Return a dataset part that holds `dataset`, and its specification, which contains a hash of the examples."""

    @dataclass(frozen=True)
    class InMemory:
        """Examples that a Python program passed."""

        rows: str = setting(dataclasses.MISSING, "hash of the examples")
        suited_head: ClassVar[str | None] = "zero" if dataset.task == TOKEN_LABELS else None

        def load(self) -> Dataset:
            """Return those examples."""
            return dataset

    digest = hashlib.sha256(" ".join(_list_hashes(dataset)).encode()).hexdigest()
    return InMemory, f"{NAME}(rows='{digest}')"


def _list_hashes(dataset: Dataset) -> list[str]:
    """Return hashes of the rows, and properties that affect training.

    Defaults add nothing, so the hashes of older datasets stay valid.
    """
    owners = [] if dataset.train.owners is None else dataset.train.owners.tolist()
    found = [hash_rows(dataset.train), hash_rows(dataset.test), repr(owners)]
    found += [dataset.task] if "(" in dataset.task else []
    found += [] if dataset.validation is None else [hash_rows(dataset.validation)]
    if dataset.tasks is not None:
        splits = [rows.tasks for _, rows in dataset.parts]
        found += [repr(dataset.tasks), *(repr([] if tasks is None else tasks.tolist()) for tasks in splits)]
    return found

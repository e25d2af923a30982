"""Rows that a Python program hands over, as a data set part like any other."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedpeft.data import user_rows
from fedpeft.data.cached_rows import hash_rows
from fedpeft.data.datasets.hf import HF
from fedpeft.data.rows import Dataset
from fedpeft.errors import DataError
from fedpeft.parts import setting

NAME = "in_memory"
TEST_FRACTION = 0.2
"""Of rows without a test set of their own: held out, stratified, as those of a file are."""


def convert_to_dataset(given: Any) -> Dataset:
    """The data set of what a user calls one.

    Args:
        given: a `Dataset`, or a part that loads one; a `datasets.Dataset` or `DatasetDict` (columns text and label,
            splits train and test); a pandas `DataFrame` with these columns; a sequence of mappings, one a row, with
            text, and label or owner if there are any; or a sequence of (texts, labels) pairs, one a client.

    Raises:
        DataError: it is nothing of the kind, or its rows can't be used.
    """
    if isinstance(given, Dataset):
        return given
    if dataclasses.is_dataclass(given) and not isinstance(given, type) and hasattr(given, "load"):
        loaded: Dataset = given.load()
        return loaded
    if type(given).__module__.partition(".")[0] == "datasets":
        splits = given if isinstance(given, Mapping) else {"train": given}
        labelled = "label" in next(iter(splits.values())).column_names
        source = HF(name=NAME, label="label" if labelled else None, test="test" if "test" in splits else None)
        return source.build_dataset(splits)
    if type(given).__name__ == "DataFrame" and hasattr(given, "to_dict"):
        given = given.to_dict("records")
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given):
        if all(isinstance(row, Mapping) for row in given):
            return _build_dataset(list(given))
        if all(isinstance(client, tuple) and len(client) == 2 for client in given):
            return _build_dataset(_build_records(given))
    raise DataError(
        "FP3060 dataset must be a text, a Dataset, a datasets.Dataset, a pandas DataFrame or mappings with text and "
        f"label, or a pair (texts, labels) for each client; got {type(given).__name__}"
    )


def _build_records(clients: Sequence[tuple[Sequence[str], Sequence[str | int]]]) -> list[dict[str, Any]]:
    digits = len(str(len(clients)))  # owners are put into the order of their names
    rows = []
    for number, (texts, labels) in enumerate(clients):
        if len(texts) != len(labels):
            raise DataError(
                f"FP3061 client {number} has {len(texts)} texts and {len(labels)} labels; give one label a text"
            )
        owner = f"client {number:0{digits}}"
        rows += [{"text": text, "label": label, "owner": owner} for text, label in zip(texts, labels, strict=True)]
    return rows


def _build_dataset(rows: list[Mapping[str, Any]] | list[dict[str, Any]]) -> Dataset:
    label, owner = (name if name in rows[0] else None for name in ("label", "owner"))
    places = ((f"row {number}", row) for number, row in enumerate(rows))
    table = user_rows.read("the given rows", places, user_rows.Names("text", label, owner))
    return user_rows.build_dataset(NAME, table, None, TEST_FRACTION, 0)


def create_part(dataset: Dataset) -> tuple[type, str]:
    """A data set part that holds `dataset`, and its text, which tells other rows apart."""

    @dataclass(frozen=True)
    class InMemory:
        """Rows that were handed over in Python."""

        rows: str = setting(dataclasses.MISSING, "hash of the rows")

        def load(self) -> Dataset:
            """Those rows."""
            return dataset

    digest = hashlib.sha256(" ".join(_list_hashes(dataset)).encode()).hexdigest()
    return InMemory, f"{NAME}(rows='{digest}')"


def _list_hashes(dataset: Dataset) -> list[str]:
    """Its rows, and what else it says of how they are learned; what it does not say leaves its text as it was."""
    owners = [] if dataset.train.owners is None else dataset.train.owners.tolist()
    found = [hash_rows(dataset.train), hash_rows(dataset.test), repr(owners)]
    found += [dataset.task] if "(" in dataset.task else []
    found += [] if dataset.validation is None else [hash_rows(dataset.validation)]
    if dataset.tasks is not None:
        splits = [rows.tasks for _, rows in dataset.parts]
        found += [repr(dataset.tasks), *(repr([] if tasks is None else tasks.tolist()) for tasks in splits)]
    return found

"""Datasets that a Python program passes to a run, as a part like any other."""

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
"""Share of the examples held out for test, stratified as for a file, if there is no test set."""


def convert_to_dataset(given: Any) -> Dataset:
    """Return the `Dataset` for any of the values that a user may pass as one.

    These values are legal:

    - a `Dataset`, or a part that loads one;
    - a `datasets.Dataset` or `DatasetDict` with the columns text and label, and the splits train and test;
    - a pandas `DataFrame` with these columns;
    - a sequence of mappings, one per example, with text and perhaps label and owner;
    - a sequence of (texts, labels) pairs, one per client.

    Raises:
        DataError: the value has none of these types, or its examples can't be used.
    """
    if isinstance(given, Dataset):
        return given
    if dataclasses.is_dataclass(given) and not isinstance(given, type) and hasattr(given, "load"):
        loaded: Dataset = given.load()
        return loaded
    if type(given).__module__.partition(".")[0] == "datasets":
        splits = given if isinstance(given, Mapping) else {"train": given}
        has_labels = "label" in next(iter(splits.values())).column_names
        source = HF(name=NAME, label="label" if has_labels else None, test="test" if "test" in splits else None)
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


def _build_dataset(rows: list[Mapping[str, Any]] | list[dict[str, Any]]) -> Dataset:
    label, owner = (name if name in rows[0] else None for name in ("label", "owner"))
    places = ((f"row {number}", row) for number, row in enumerate(rows))
    table = user_rows.read("the given rows", places, user_rows.Names("text", label, owner))
    return user_rows.build_dataset(NAME, table, None, TEST_FRACTION, 0)


def create_part(dataset: Dataset) -> tuple[type, str]:
    """Return a dataset part that holds `dataset`, and its specification, which contains a hash of the examples."""

    @dataclass(frozen=True)
    class InMemory:
        """Examples that a Python program passed."""

        rows: str = setting(dataclasses.MISSING, "hash of the examples")

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

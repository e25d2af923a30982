"""From named columns of a user's own records to a checked data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedpeft.data.rows import Dataset, Rows, encode_labels, split_test
from fedpeft.errors import DataError
from fedpeft.parts import nearest


@dataclass(frozen=True)
class Names:
    """Which column holds what; `label` None means causal language modelling, `owner` None that nobody owns rows."""

    text: str
    label: str | None
    owner: str | None


@dataclass(frozen=True)
class Table:
    """Checked columns: one string per row; None where the column was not asked for."""

    texts: list[str]
    labels: list[str] | None
    owners: list[str] | None


def read(source: str, records: Iterable[tuple[str, Mapping[str, Any]]], names: Names) -> Table:
    """The columns `names` of `records`: (place such as "line 3", {column: value}) pairs of `source`.

    Raises:
        DataError: no records; a column is missing (the message names those that exist), has no value or a wrong type.
    """
    table = Table([], None if names.label is None else [], None if names.owner is None else [])
    for place, record in records:
        where = f"{place} of {source}"
        text = _value(record, names.text, "text", where)
        if not isinstance(text, str):
            raise DataError(f"{where}: the column {names.text!r} must hold text, got {_shown(text)}")
        if not text.strip():
            raise DataError(f"{where}: the column {names.text!r} is empty")
        table.texts.append(text)
        for column, role, values in ((names.label, "label", table.labels), (names.owner, "owner", table.owners)):
            if column is None or values is None:
                continue
            value = _value(record, column, role, where)
            if not isinstance(value, (str, int)) or not str(value).strip():
                raise DataError(f"{where}: the column {column!r} must hold a word or an integer, got {_shown(value)}")
            values.append(str(value).strip())
    if not table.texts:
        raise DataError(f"{source} has no rows")
    return table


def _value(record: Mapping[str, Any], column: str, role: str, where: str) -> Any:
    if column not in record:
        hint = "; if the rows have no labels, set label=None for language modelling" if role == "label" else ""
        raise DataError(f"{where} has no column {column!r} for the {role}; {nearest(column, map(str, record))}{hint}")
    return record[column]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def dataset(name: str, train: Table, test: Table | None, test_fraction: float, seed: int) -> Dataset:
    """The data set of these tables; without `test`, the fraction of `train` is held out, stratified, by `seed`."""
    label_names, train_labels, test_labels = None, None, None
    if train.labels is not None:
        unseen: list[str] = [] if test is None or test.labels is None else test.labels
        label_names, train_labels, test_labels = encode_labels(train.labels, unseen, name)
    rows = Rows(train.texts, train_labels, None if train.owners is None else np.array(train.owners))
    if test is None:
        rows, test_rows = split_test(rows, test_fraction, seed)
    else:
        test_rows = Rows(test.texts, test_labels, None if test.owners is None else np.array(test.owners))
    return Dataset(
        name=name,
        kind="text",
        task="causal_lm" if train_labels is None else "classification",
        train=rows,
        test=test_rows,
        label_names=label_names,
        default_model="smollm2" if train_labels is None else "minilm",
    )

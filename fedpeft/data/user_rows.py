"""A user's own rows: named columns of records, and a checked data set of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.record_files import records
from fedpeft.data.rows import Dataset, Rows, encode_labels, split_test
from fedpeft.errors import DataError
from fedpeft.parts import nearest


@dataclass(frozen=True)
class Names:
    """Which column holds what; `label` None means causal language modelling, `owner` None that nobody owns rows.

    `ask` is how a user names a column, with ROLE for text, label or owner; empty: their names are fixed.
    """

    text: str
    label: str | None
    owner: str | None
    ask: str = ""


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
        text = _text(record, names.text, where, names.ask)
        if not isinstance(text, str):
            raise DataError(f"{where}: the column {names.text!r} must hold text, got {_shown(text)}")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise DataError(f"{where}: the column {names.text!r} holds half of a character (a lone surrogate)")
        if not text.strip():
            raise DataError(f"{where}: the column {names.text!r} is empty")
        table.texts.append(text)
        for column, role, values in ((names.label, "label", table.labels), (names.owner, "owner", table.owners)):
            if column is None or values is None:
                continue
            value = _value(record, column, role, where, names.ask)
            if not isinstance(value, (str, int)) or not str(value).strip():
                kind = _UNSUPPORTED.get(type(value), "") if role == "label" else ""
                raise DataError(
                    f"{where}: the column {column!r} must hold a word or an integer, got {_shown(value)}{kind}"
                )
            values.append(str(value).strip())
    if not table.texts:
        raise DataError(f"{source} has no rows")
    return table


_UNSUPPORTED = {
    float: "; numbers can't be predicted (regression), classes can",
    list: "; a row has one class (no multi-label classification, no classes of tokens)",
}
"""What a label's type tells of the task that the user has in mind."""

AND = " + "


def _text(record: Mapping[str, Any], column: str, where: str, ask: str) -> Any:
    """The text of a column; of several, `a + b`, one text with each value after its column's name."""
    if AND not in column or column in record:
        return _value(record, column, "text", where, ask)
    values = {name: _value(record, name, "text", where, ask) for name in column.split(AND)}
    for name, value in values.items():
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: the column {name!r} must hold text, got {_shown(value)}")
    return " ".join(f"{name}: {value}" for name, value in values.items())


def _value(record: Mapping[str, Any], column: str, role: str, where: str, ask: str) -> Any:
    if column not in record:
        hint = f"; name yours: {ask.replace('ROLE', role)}" if ask else ""
        if role == "label" and "ROLE=" in ask:  # a setting, which may be None
            hint += "; if the rows have no labels, set label=None for language modelling"
        raise DataError(f"{where} has no column {column!r} for the {role}; {nearest(column, map(str, record))}{hint}")
    return record[column]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def dataset(
    name: str, train: Table, test: Table | None, test_fraction: float, seed: int, validation: Table | None = None
) -> Dataset:
    """The data set of these tables; without `test`, the fraction of `train` is held out, stratified, by `seed`."""
    label_names = None
    tables = [train, *(table for table in (validation, test) if table is not None)]
    labels: list[NDArray[np.int64] | None] = [None] * len(tables)
    if train.labels is not None:
        _refuse_numbers(train.labels, name)
        for i, table in enumerate(tables):
            label_names, labels[0], labels[i] = encode_labels(train.labels, table.labels or [], name)
    parts = [
        Rows(table.texts, column, None if table.owners is None else np.array(table.owners))
        for table, column in zip(tables, labels, strict=True)
    ]
    rows = parts[0]
    if test is None:
        rows, test_rows = split_test(rows, test_fraction, seed)
    else:
        test_rows = parts[-1]
    return Dataset(
        name=name,
        kind="text",
        task="causal_lm" if train.labels is None else "classification",
        train=rows,
        test=test_rows,
        label_names=label_names,
        default_model="smollm2" if train.labels is None else "minilm",
        validation=None if validation is None else parts[1],
    )


def _refuse_numbers(labels: Sequence[str], name: str) -> None:
    """Refuse labels that are measured numbers: half of them are distinct and have a fraction."""
    distinct = set(labels)
    if len(distinct) > max(20, len(labels) // 2):
        try:
            whole = all(float(label).is_integer() for label in distinct)
        except (ValueError, OverflowError):
            return
        if not whole:
            raise DataError(
                f"{name}: the labels are {len(distinct)} different numbers in {len(labels)} rows; numbers can't be "
                "predicted (regression), classes can: give ranges of them names"
            )


def of_pictures(made: Dataset, pixels: Callable[[list[str]], NDArray[np.uint8]]) -> Dataset:
    """A data set of pictures, made of one whose texts are their paths; `pixels` reads them.

    Raises:
        DataError: there are no labels.
    """
    if made.label_names is None:
        raise DataError(f"{made.name}: pictures need classes; leave label=None out")

    def read_in(rows: Rows) -> Rows:
        return replace(rows, inputs=pixels(list(map(str, rows.inputs))))

    validation = None if made.validation is None else read_in(made.validation)
    train, test = read_in(made.train), read_in(made.test)
    return replace(made, kind="image", train=train, test=test, validation=validation, default_model="dinov2_small")


class Described(Dataset):
    """A data set of which one side knows a part only: class names without rows, or the rows of one client."""

    def __post_init__(self) -> None:
        """Nothing to check: rows are the other side's."""


def labelled_rows(path: str, text: str, label: str | None, names: Sequence[str] | None) -> tuple[Rows, tuple[str, ...]]:
    """The rows of a file, with labels as positions in `names` (None: the names that occur, sorted), and the names.

    Raises:
        DataError: the file can't be read, lacks a column, or holds a label that is not in `names`.
    """
    table = read(path, records(path), Names(text, label, None, "--ROLE-column COLUMN"))
    if table.labels is None:
        return Rows(table.texts), ()
    known = tuple(names or sorted(set(table.labels)))
    position = {name: i for i, name in enumerate(known)}
    unknown = sorted(set(table.labels) - position.keys())
    if unknown:
        shown = ", ".join(repr(name) for name in unknown[:5])
        raise DataError(
            f"{path} has {len(unknown)} labels in column {label!r} that the federation does not know: {shown}; "
            f"its labels are {', '.join(map(repr, known[:20]))}"
        )
    return Rows(table.texts, np.array([position[name] for name in table.labels], np.int64)), known

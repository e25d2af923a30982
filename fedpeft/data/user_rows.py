"""A user's own rows: files of records (CSV, TSV, JSONL), named columns of them, and a checked data set."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fedpeft.data.rows import Dataset, Rows, encode_labels, split_test
from fedpeft.errors import ConfigError, DataError
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
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise DataError(f"{where}: the column {names.text!r} holds half of a character (a lone surrogate)")
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


DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}


JSON_LINES = (".jsonl", ".ndjson")


def records(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a CSV, TSV or JSONL file, each with its place ("line 3"); ConfigError or DataError."""
    path = Path(name).expanduser()
    suffix = path.suffix.lower()
    if suffix not in DELIMITERS and suffix not in JSON_LINES:
        raise ConfigError(f"{name} must end in {', '.join((*DELIMITERS, *JSON_LINES))}, which says how to read it")
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would be waited for
        raise DataError(f"{name} is no file of rows, but a pipe or a device; give a file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield from _json_lines(name, stream) if suffix in JSON_LINES else _table(name, stream, DELIMITERS[suffix])
    except FileNotFoundError:
        raise DataError(f"there is no file {name}") from None
    except IsADirectoryError:
        raise DataError(f"{name} is a directory; name a file in it") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 text (byte {error.start}); save it with that encoding") from None
    except OSError as error:
        raise DataError(f"can't read {name}: {error.strerror}") from None


def _table(name: str, stream: TextIO, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts beyond 128 kB
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise DataError(f"{name} is empty")
        if len(set(header)) < len(header):
            raise DataError(f"{name} names a column twice in its first line: {', '.join(header)}")
        for fields in reader:
            if not fields:
                continue  # a blank line
            if len(fields) != len(header):
                raise DataError(f"line {reader.line_num} of {name} has {len(fields)} fields, the first {len(header)}")
            yield f"line {reader.line_num}", dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise DataError(f"line {reader.line_num} of {name} is not valid CSV: {error}") from None


def _json_lines(name: str, stream: TextIO) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"line {number} of {name} is not valid JSON: {error}") from None
        if not isinstance(record, dict):
            raise DataError(f'line {number} of {name} is not a JSON object such as {{"text": ..., "label": ...}}')
        yield f"line {number}", record


class Described(Dataset):
    """A data set of which one side knows a part only: class names without rows, or the rows of one client."""

    def __post_init__(self) -> None:
        """Nothing to check: rows are the other side's."""


def labelled_rows(path: str, text: str, label: str | None, names: Sequence[str] | None) -> tuple[Rows, tuple[str, ...]]:
    """The rows of a file, with labels as positions in `names` (None: the names that occur, sorted), and the names.

    Raises:
        DataError: the file can't be read, lacks a column, or holds a label that is not in `names`.
    """
    table = read(path, records(path), Names(text, label, None))
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

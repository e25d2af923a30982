"""A user's own examples: named columns of records, and the checked dataset built from them."""

from __future__ import annotations

from array import array as array_of_numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.incomplete_rows import CompleteRecords
from fedpeft.data.instruction_columns import suggest_answer_columns
from fedpeft.data.label_columns import (
    AND,
    LabelColumn,
    Labels,
    build_array,
    build_matrix,
    collect_label_names,
    compute_moments,
    find_positions,
    parse_names,
    sort_labels,
)
from fedpeft.data.record_files import name_incomplete_part
from fedpeft.data.rows import CLIP_AXES, Dataset, Kind, Rows, Source, split_test
from fedpeft.data.table_format import DETECT, TableFormat
from fedpeft.data.text_column import TextColumn, TextWriter
from fedpeft.errors import DataError, shorten_value
from fedpeft.machine import growing_array
from fedpeft.parts import suggest_legal
from fedpeft.parts.families import DATASETS
from fedpeft.parts.spec import Spec

Records = Iterable[tuple[str, Mapping[str, Any]]]
"""Place of each record, such as "line 3", and its values by column."""


SETTING = "ROLE=COLUMN"
"""In `Names.ask`: a user names columns by settings."""


@dataclass(frozen=True)
class Names:
    """Columns of a user's data and how to read them.

    Attributes:
        text: column of texts.
        label: column of labels; None: causal language modeling.
        owner: column of owners; None: no row has one.
        ask: how a user names a column, with ROLE for text, label or owner; empty: the names are fixed. With `SETTING`
            in it, columns are named by settings.
        label_type: type of the labels, one of `fedpeft.data.label_columns.KINDS`.
        incomplete: treatment of incomplete rows, one of `fedpeft.data.incomplete_rows.INCOMPLETE`; empty: they are
            refused, and there is no setting to change that.
        form: format of text files, with the decimal sign of labels.
        finds_owner: whether the owner's column was found by its name, so that owner=None ignores it.
    """

    text: str
    label: str | None
    owner: str | None
    ask: str = ""
    label_type: str = "auto"
    incomplete: str = ""
    form: TableFormat = DETECT
    finds_owner: bool = False

    @property
    def needs(self) -> dict[str, str]:
        """The columns that must have a value in each row, see `fedpeft.data.incomplete_rows.CompleteRecords`."""
        free = self.label is None or (
            self.label_type == "labels" and AND not in self.label
        )  # a row may have none of several labels
        found = {"text": self.text, "label": None if free else self.label, "owner": self.owner}
        return {role: column for role, column in found.items() if column is not None}

    def complete(self, records: Records, source: str, needs: Mapping[str, str] | None = None) -> CompleteRecords:
        """Return the `records` of `source` that have values in all columns `needs`; None: in those of `Names.needs`."""
        settable = self.label_type == "auto" and SETTING in self.ask and AND not in (self.label or "")
        hints = {"label": "; label_type=labels accepts rows with several labels or none"} if settable else {}
        reader = self.ask.partition("(")[0].strip('"')
        hints |= {"owner": "; owner=None accepts rows without an owner"} if self.finds_owner else {}
        needed = self.needs if needs is None else needs
        return CompleteRecords(records, source, needed, self.incomplete, hints, reader)


def get_text_column(dataset: str | Source) -> str:
    """Return the default text column of a dataset, or of the one that a text describes.

    Raises:
        ConfigError: unknown name or setting; or datasets with different columns.
    """
    return str(getattr(DATASETS.build(dataset), "text", "text"))


@dataclass(frozen=True)
class Owners:
    """Owner of each row: a position in `names`, int32 (rows,); names are in the order of their first rows."""

    names: tuple[str, ...]
    rows: NDArray[np.int32]

    def find_positions(self, names: Sequence[str]) -> NDArray[np.int32]:
        """Return the rows' positions among other `names`, which include all of these."""
        place = {name: i for i, name in enumerate(names)}
        return growing_array.take_rows(np.array([place[name] for name in self.names], np.int32), self.rows)


@dataclass(frozen=True)
class Table:
    """Checked columns: one string per row; None for a column that was not requested.

    Texts of many rows are on disk; rows with equal labels or owners share one string. `left_out` reports the rows that
    were left out; empty: none.
    """

    texts: Sequence[str]
    labels: Labels | None
    owners: Owners | None
    left_out: str = ""


def read(source: str, records: Records, names: Names) -> Table:
    """Read the columns `names` of the `records` of `source`.

    Raises:
        DataError: there are no records; or a column is missing (the message lists those that exist), has no value or a
            wrong type.
    """
    texts = TextWriter()
    owners, waiting = growing_array.create_spool(np.int32), array_of_numbers("i")
    known: dict[str, int] = {}
    labels = None if names.label is None else LabelColumn(names.label, names.label_type, names.form)
    complete = names.complete(records, source)
    for place, record in complete:
        where = f"{place} of {source}"
        lacks = name_incomplete_part(place, source)
        texts.append(_get_text(record, names, where, lacks))
        if labels is not None:
            if columns := labels.select_columns(record):
                labels.add_columns([_get_value(record, column, "label", lacks, names) for column in columns], where)
            else:
                labels.add(_get_value(record, labels.column, "label", lacks, names), where)
        if names.owner is not None:
            value = _get_value(record, names.owner, "owner", lacks, names)
            if not isinstance(value, (str, int)):
                raise DataError(
                    f"FP3153 {where}: the column {names.owner!r} must hold a word or an integer, got "
                    f"{shorten_value(value)}"
                )
            waiting.append(known.setdefault(str(value).strip(), len(known)))
            if len(waiting) == growing_array.ROWS:
                owners.append(waiting)
                waiting = array_of_numbers("i")
    if not len(texts):
        raise DataError(f"FP3028 {source} has no rows")
    owners.append(waiting)
    own = None if names.owner is None else Owners(tuple(known), owners.create_array())
    return Table(texts.create_column(), None if labels is None else labels.parse(), own, complete.note)


def check_texts(source: str, records: Records, names: Names) -> None:
    """Check the texts of the `records` of `source`, and keep none.

    Raises:
        DataError: as in `read`, for texts.
    """
    for place, record in names.complete(records, source):
        _get_text(record, names, f"{place} of {source}", name_incomplete_part(place, source))


def _get_text(record: Mapping[str, Any], names: Names, where: str, lacks: str) -> str:
    """Return the text of a column; for several, `a + b`, one text with each value after its column's name."""
    columns = (names.text,) if names.text in record else names.text.split(AND)
    values = [_get_value(record, column, "text", lacks, names) for column in columns]
    for column, value in zip(columns, values, strict=True):
        if not isinstance(value, str):
            words = isinstance(value, list | tuple) and all(isinstance(word, str) for word in value)
            hint = (
                "; join the words of a text with spaces, or name a column with a list of as many labels, for the task "
                "token_labels: file(..., text=tokens, label=ner_tags)"
            )
            raise DataError(
                f"FP3154 {where}: the column {column!r} must hold text, got "
                f"{shorten_value(value)}{hint if words else ''}"
            )
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise DataError(
                f"FP3152 {where}: the column {column!r} holds half of a character (a lone surrogate); remove it"
            )
    if len(values) == 1:
        return str(values[0])
    return " ".join(f"{column}: {value}" for column, value in zip(columns, values, strict=True))


def _get_value(record: Mapping[str, Any], column: str, role: str, lacks: str, names: Names) -> Any:
    """Return a record's value of a column; messages call what lacks the column `lacks`, and name all missing ones."""
    if column not in record:
        ask = names.ask
        others = {r: c for r, c in names.needs.items() if r != role and c not in record and AND not in c}
        also = "".join(f", no column {c!r} for the {r}" for r, c in others.items())
        hint = f"; name yours: {ask.replace('ROLE', role)}" if ask else ""
        if role == "label" and SETTING in ask:  # a setting, which may be None
            hint += "; if the rows have no labels, set label=None for language modeling"
        if hint and SETTING in ask and role != "owner":
            hint += "; owner=COLUMN names the column of owners"
        if role == "text" and SETTING in ask:
            hint += suggest_answer_columns(map(str, record))
        raise DataError(
            f"FP3155 {lacks} has no column {column!r} for the {role}{also}; "
            f"{suggest_legal(column, map(str, record))}{hint}"
        )
    return record[column]


@dataclass(frozen=True)
class KnownLabels:
    """Properties of the labels that a user gives in advance; None: they come from the training examples.

    Attributes:
        mean: mean of numbers to predict, in their units.
        deviation: standard deviation of numbers to predict.
        names: names of classes or labels, in order.
    """

    mean: float | None = None
    deviation: float | None = None
    names: tuple[str, ...] | None = None

    @classmethod
    def from_settings(cls, mean: float | None, deviation: float | None, labels: str | None) -> KnownLabels:
        """Return the properties in the user's settings; `labels` is written "a,b,c".

        Raises:
            ConfigError: `labels` contains no name, or one twice.
        """
        return cls(mean, deviation, None if labels is None else parse_names(labels, least=1))


NOTHING = KnownLabels()


def build_dataset(
    name: str,
    train: Table,
    test: Table | None,
    test_fraction: float,
    seed: int,
    validation: Table | None = None,
    known: KnownLabels = NOTHING,
    column: str = "label",
) -> Dataset:
    """Return the dataset of these tables; without `test`, hold out a stratified share of `train`.

    Args:
        name: name of the dataset.
        train: the training table.
        test: the test table, or None.
        test_fraction: share of `train` that is held out without `test`.
        seed: decides which rows these are.
        validation: the validation table; None: some of `train` are held out later.
        known: properties of the labels that the user gave.
        column: name of the numbers to predict.

    Raises:
        DataError: labels occur only in the test set, differ in type from the training labels, or are not `known`.
    """
    tables = [train, *(table for table in (validation, test) if table is not None)]
    names, labels = _encode_labels([table.labels for table in tables], name, column, known.names)
    owners = _encode_owners(tables)
    parts = [Rows(table.texts, values, own) for table, values, own in zip(tables, labels, owners, strict=True)]
    rows = parts[0]
    if test is None:
        rows, test_rows = split_test(rows, test_fraction, seed)
    else:
        test_rows = parts[-1]
    return Dataset(
        name=name,
        kind="text",
        task=_choose_task(rows, name, known),
        train=rows,
        test=test_rows,
        label_names=names,
        default_model="smollm2" if train.labels is None else "minilm",
        validation=None if validation is None else parts[1],
        notes=(
            *(() if train.labels is None else train.labels.notes),
            *(table.left_out for table in tables if table.left_out),
        ),
        labels_of_rows=known.names is None and not _explain_missing_names(train.labels),
    )


def _encode_owners(tables: Sequence[Table]) -> list[NDArray[Any] | None]:
    """Return the owners of each table's rows: names, or for texts on disk, positions among all sorted names.

    Names take four bytes per letter of the longest one. Parts need only equality and order of owners.
    """
    if not any(isinstance(table.texts, TextColumn) for table in tables):
        return [None if table.owners is None else np.array(table.owners.names)[table.owners.rows] for table in tables]
    names = sorted({name for table in tables if table.owners is not None for name in table.owners.names})
    return [None if table.owners is None else table.owners.find_positions(names) for table in tables]


def _encode_labels(
    tables: Sequence[Labels | None], name: str, column: str, given_names: tuple[str, ...] | None
) -> tuple[tuple[str, ...] | None, list[NDArray[Any] | None]]:
    """Return label names, and each table's labels as numbers; the first table is the training set.

    `given_names` are the names of `KnownLabels`.
    """
    if given_names is not None and (why := _explain_missing_names(tables[0])):
        raise DataError(f"FP3156 {name}: labels={','.join(given_names)!r} gives names, but {why}; leave it out")
    if tables[0] is None:
        return None, [None] * len(tables)
    kind = tables[0].kind
    labels = [table for table in tables if table is not None and table.kind == kind]
    if len(labels) < len(tables):
        raise DataError(
            f"FP3157 {name}: the training examples have {_CALLED[kind]}, but the validation or test examples have "
            "another type of label; set label_type to a type that fits all"
        )
    if kind == "number":
        return (column,), [build_array(table) for table in labels]
    names = given_names or collect_label_names(labels[0], name)
    if kind == "labels":
        where = "occur in labels" if given_names else "occur in the training examples"
        return names, [build_matrix(table, names, name, where) for table in labels]
    return names, [find_positions(table.values, names, name, are_given=given_names is not None) for table in labels]


def _explain_missing_names(labels: Labels | None) -> str:
    """Return why a user can't name the labels; empty: a user can."""
    if labels is None:
        return "the examples have no labels"
    if labels.kind == "number":
        return "the examples have numbers to predict (label_type=class makes them classes)"
    return "the names of the label columns are fixed" if labels.names else ""


_CALLED = {"class": "classes", "number": "numbers to predict", "labels": "several labels each"}


def _choose_task(train: Rows, name: str, known: KnownLabels) -> str:
    """Return the task that fits the training labels."""
    if train.targets != "numbers":
        if known.mean is not None or known.deviation is not None:
            raise DataError(
                f"FP3158 {name} has no numbers to predict; leave mean and deviation out, or set label_type=number"
            )
        return {"classes": "classification", "labels": "multi_label"}.get(train.targets, "causal_lm")
    if (known.mean is None) != (known.deviation is None):
        raise DataError(f"FP3159 {name}: mean and deviation belong together; give both, or neither")
    if known.mean is not None:
        return str(Spec("regression", {"mean": known.mean, "deviation": known.deviation, "known": True}))
    mean, deviation = compute_moments(np.asarray(train.labels), name)
    return str(Spec("regression", {"mean": mean, "deviation": deviation}))


def build_picture_dataset(made: Dataset, pixels: Callable[[list[str]], NDArray[np.uint8]]) -> Dataset:
    """Return a dataset of images or clips from one whose texts are paths; `pixels` reads them.

    Raises:
        DataError: there are no labels.
    """
    if made.label_names is None:
        raise DataError(f"FP3160 {made.name}: images need labels; leave label=None out")

    def read_in(rows: Rows) -> Rows:
        return replace(rows, inputs=pixels(list(map(str, rows.inputs))))

    validation = None if made.validation is None else read_in(made.validation)
    train, test = read_in(made.train), read_in(made.test)
    kind: Kind = "clip" if np.ndim(train.inputs) == CLIP_AXES else "image"
    return replace(made, kind=kind, train=train, test=test, validation=validation, default_model="dinov2_small")


class DescribedDataset(Dataset):
    """A dataset of which one side holds only a part: class names without examples, or the examples of one client."""

    def __post_init__(self) -> None:
        """Skip all checks, because the other side holds the examples."""


def build_labeled_rows(
    path: str,
    found: Records,
    text: str,
    label: str | None,
    names: Sequence[str] | None,
    targets: str = "classes",
    form: TableFormat = DETECT,
    say: Callable[[str], object] = str,
) -> tuple[Rows, tuple[str, ...]]:
    """Return the examples of records, with labels as positions in the names, and these names.

    Args:
        path: what the records come from, for messages.
        found: the records.
        text: the text column.
        label: the label column; None: there are no labels.
        names: names of the labels; None: those that occur, sorted (numbers by value).
        targets: type of the labels: "classes" or ""; "numbers", which `names` or the column name; "labels", several per
            row.
        form: the format of the file, with the decimal sign of labels.
        say: called with each line about detected labels.

    Raises:
        DataError: the file can't be read, lacks a column, or contains a label that is not in `names`.
    """
    kind = {"numbers": "number", "labels": "labels"}.get(targets, "class" if names else "auto")
    table = read(path, found, Names(text, label, None, "--ROLE-column COLUMN", kind, "", form))
    if table.labels is None:
        return Rows(table.texts), ()
    if targets == "numbers":
        for note in table.labels.notes:
            say(note)
        return Rows(table.texts, build_array(table.labels)), tuple(names or (str(label),))
    if targets == "labels":
        known = tuple(names or collect_label_names(table.labels, path))
        where = f"belong to the federation, whose labels are {', '.join(map(repr, known[:20]))}"
        return Rows(table.texts, build_matrix(table.labels, known, path, where)), known
    if table.labels.kind != "class":
        raise DataError(
            f"FP3161 the column {label!r} of {path} contains {_CALLED[table.labels.kind]} instead of classes; set "
            "--task 'regression(mean=50, deviation=10)' or multi_label"
        )
    values = list(table.labels.values)
    known = tuple(names or sort_labels(set(values)))
    unknown = sorted(set(values) - set(known))
    if unknown:
        shown = ", ".join(repr(name) for name in unknown[:5])
        raise DataError(
            f"FP3162 {path} has {len(unknown)} label{'' if len(unknown) == 1 else 's'} in column {label!r} that the "
            f"federation does not use: {shown}; its labels are {', '.join(map(repr, known[:20]))}"
        )
    return Rows(table.texts, find_positions(values, known, path)), known

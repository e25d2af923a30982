"""A user's own rows: named columns of records, and a checked data set of them."""

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
    find_positions,
    label_names,
    parse_names,
    sort_labels,
)
from fedpeft.data.label_columns import compute_moments as moments_of
from fedpeft.data.record_files import name_incomplete_part
from fedpeft.data.rows import DATASETS, Dataset, Rows, split_test
from fedpeft.data.table_format import DETECT, TableFormat
from fedpeft.data.text_column import TextColumn, TextWriter
from fedpeft.errors import DataError, shorten_value
from fedpeft.machine import growing_array
from fedpeft.parts import suggest_legal
from fedpeft.spec import Spec

Records = Iterable[tuple[str, Mapping[str, Any]]]
"""Of each its place, such as "line 3", and its values by column."""


@dataclass(frozen=True)
class Names:
    """Which column holds what; `label` None means causal language modelling, `owner` None that nobody owns rows.

    `ask` is how a user names a column, with ROLE for text, label or owner; empty: their names are fixed. `label_type`
    is what the label's column holds, one of `fedpeft.data.label_columns.KINDS`. `incomplete` is what becomes of rows
    that lack something, one of `fedpeft.data.incomplete_rows.INCOMPLETE`; empty: they are refused, and nobody may say
    otherwise. `form` is the format of text files, with the decimal sign of labels. `finds_owner`: the owner's column
    was found by its name.
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
        free = self.label is None or (self.label_type == "labels" and AND not in self.label)  # none of several labels
        found = {"text": self.text, "label": None if free else self.label, "owner": self.owner}
        return {role: column for role, column in found.items() if column is not None}

    def complete(self, records: Records, source: str, needs: Mapping[str, str] | None = None) -> CompleteRecords:
        """Those `records` of `source` that have what they need; None: these columns."""
        settable = self.label_type == "auto" and "ROLE=" in self.ask and AND not in (self.label or "")
        hint = "; label_type=labels takes rows that have several labels or none" if settable else ""
        reader = self.ask.partition("(")[0]
        owner_hint = "; owner=None takes rows that belong to nobody" if self.finds_owner else ""
        needed = self.needs if needs is None else needs
        return CompleteRecords(records, source, needed, self.incomplete, hint, reader, owner_hint)


def get_text_column(text: str) -> str:
    """The column of texts in rows like those of the data set that `text` describes, where nobody names another.

    Raises:
        ConfigError: unknown name or setting; or data sets of several columns.
    """
    return str(getattr(DATASETS.build(text), "text", "text"))


@dataclass(frozen=True)
class Owners:
    """Whose each row is: the position of a name in `names`, int32 (rows,); names in the order of their first rows."""

    names: tuple[str, ...]
    rows: NDArray[np.int32]

    def find_positions(self, names: Sequence[str]) -> NDArray[np.int32]:
        """Positions among other `names`, which hold all of these."""
        place = {name: i for i, name in enumerate(names)}
        return growing_array.take_rows(np.array([place[name] for name in self.names], np.int32), self.rows)


@dataclass(frozen=True)
class Table:
    """Checked columns: one string per row; None where the column was not asked for.

    Texts of many rows are on disk; a label or owner that several rows share is one string. `left_out` says which rows
    were left out; empty: none.
    """

    texts: Sequence[str]
    labels: Labels | None
    owners: Owners | None
    left_out: str = ""


def read(source: str, records: Records, names: Names) -> Table:
    """The columns `names` of the `records` of `source`.

    Raises:
        DataError: no records; a column is missing (the message names those that exist), has no value or a wrong type.
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
            if columns := labels.of(record):
                labels.add_columns([_get_value(record, column, "label", lacks, names.ask) for column in columns], where)
            else:
                labels.add(_get_value(record, labels.column, "label", lacks, names.ask), where)
        if names.owner is not None:
            value = _get_value(record, names.owner, "owner", lacks, names.ask)
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
    """Go through the texts of the `records` of `source`, and keep none.

    Raises:
        DataError: as of `read`, of texts.
    """
    for place, record in names.complete(records, source):
        _get_text(record, names, f"{place} of {source}", name_incomplete_part(place, source))


def _get_text(record: Mapping[str, Any], names: Names, where: str, lacks: str) -> str:
    """The text of a column; of several, `a + b`, one text with each value after its column's name."""
    columns = (names.text,) if names.text in record else names.text.split(AND)
    values = [_get_value(record, column, "text", lacks, names.ask) for column in columns]
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
            raise DataError(f"FP3152 {where}: the column {column!r} holds half of a character (a lone surrogate)")
    if len(values) == 1:
        return str(values[0])
    return " ".join(f"{column}: {value}" for column, value in zip(columns, values, strict=True))


def _get_value(record: Mapping[str, Any], column: str, role: str, lacks: str, ask: str) -> Any:
    """A record's value of a column; `lacks` is what has no such column, where there is none."""
    if column not in record:
        hint = f"; name yours: {ask.replace('ROLE', role)}" if ask else ""
        if role == "label" and "ROLE=" in ask:  # a setting, which may be None
            hint += "; if the rows have no labels, set label=None for language modelling"
        if hint and "ROLE=" in ask and role != "owner":
            hint += "; owner=COLUMN names whose row it is"
        if role == "text" and "ROLE=" in ask:
            hint += suggest_answer_columns(map(str, record))
        raise DataError(
            f"FP3155 {lacks} has no column {column!r} for the {role}; {suggest_legal(column, map(str, record))}{hint}"
        )
    return record[column]


@dataclass(frozen=True)
class KnownLabels:
    """What a user knows of the labels beforehand; None: it is that of the training rows.

    Attributes:
        mean, deviation: of numbers to predict, in their units.
        names: of classes or labels, in order.
    """

    mean: float | None = None
    deviation: float | None = None
    names: tuple[str, ...] | None = None

    @classmethod
    def from_settings(cls, mean: float | None, deviation: float | None, labels: str | None) -> KnownLabels:
        """What settings say; `labels` as "a,b,c".

        Raises:
            ConfigError: `labels` names none, or one twice.
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
    """The data set of these tables; without `test`, the fraction of `train` is held out, stratified, by `seed`.

    `column` is what numbers to predict are called.

    Raises:
        DataError: labels that occur in test rows alone, or are of another kind there than in the training rows; or that
            are not `known`, or can't be.
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
    """Whose the rows of each table are: names, or where texts are on disk, positions among all names in their order.

    A name takes four bytes a letter of the longest; parts ask only which rows share an owner, and for owners in order.
    """
    if not any(isinstance(table.texts, TextColumn) for table in tables):
        return [None if table.owners is None else np.array(table.owners.names)[table.owners.rows] for table in tables]
    names = sorted({name for table in tables if table.owners is not None for name in table.owners.names})
    return [None if table.owners is None else table.owners.find_positions(names) for table in tables]


def _encode_labels(
    tables: Sequence[Labels | None], name: str, column: str, told: tuple[str, ...] | None
) -> tuple[tuple[str, ...] | None, list[NDArray[Any] | None]]:
    """Label names, and each table's labels as numbers; the first table is the training rows'. `told`: see
    `KnownLabels`.
    """
    if told is not None and (why := _explain_missing_names(tables[0])):
        raise DataError(f"FP3156 {name}: labels={','.join(told)!r} names classes, and {why}; leave it out")
    if tables[0] is None:
        return None, [None] * len(tables)
    kind = tables[0].kind
    labels = [table for table in tables if table is not None and table.kind == kind]
    if len(labels) < len(tables):
        raise DataError(
            f"FP3157 {name}: the training rows have {_CALLED[kind]}, and validation or test rows have something else; "
            "say with label_type what they are"
        )
    if kind == "number":
        return (column,), [build_array(table) for table in labels]
    if kind == "labels":
        if told is not None:
            return told, [
                build_matrix(table, told, name, "stand among those that are named in labels") for table in labels
            ]
        names = label_names(labels[0], name)
        return names, [build_matrix(table, names, name) for table in labels]
    names = told or sort_labels(set(labels[0].values))
    return names, [find_positions(table.values, names, name, told=told is not None) for table in labels]


def _explain_missing_names(labels: Labels | None) -> str:
    """Return why nobody can name the values of a column; empty: they can be named, by default by those that occur."""
    if labels is None:
        return "these rows have no labels"
    if labels.kind == "number":
        return "these rows have numbers to predict, of which label_type=class makes classes"
    return "these labels are called as their columns are" if labels.names else ""


_CALLED = {"class": "classes", "number": "numbers to predict", "labels": "several labels each"}


def _choose_task(train: Rows, name: str, known: KnownLabels) -> str:
    """What is learned of the training rows' labels."""
    if train.targets != "numbers":
        if known.mean is not None or known.deviation is not None:
            raise DataError(
                f"FP3158 {name} has no numbers to predict; leave mean and deviation out, or say label_type=number"
            )
        return {"classes": "classification", "labels": "multi_label"}.get(train.targets, "causal_lm")
    if (known.mean is None) != (known.deviation is None):
        raise DataError(f"FP3159 {name}: mean and deviation belong together; give both, or neither")
    if known.mean is not None:
        return str(Spec("regression", {"mean": known.mean, "deviation": known.deviation, "known": True}))
    mean, deviation = moments_of(np.asarray(train.labels), name)
    return str(Spec("regression", {"mean": mean, "deviation": deviation}))


def build_picture_dataset(made: Dataset, pixels: Callable[[list[str]], NDArray[np.uint8]]) -> Dataset:
    """A data set of pictures, made of one whose texts are their paths; `pixels` reads them.

    Raises:
        DataError: there are no labels.
    """
    if made.label_names is None:
        raise DataError(f"FP3160 {made.name}: pictures need labels; leave label=None out")

    def read_in(rows: Rows) -> Rows:
        return replace(rows, inputs=pixels(list(map(str, rows.inputs))))

    validation = None if made.validation is None else read_in(made.validation)
    train, test = read_in(made.train), read_in(made.test)
    return replace(made, kind="image", train=train, test=test, validation=validation, default_model="dinov2_small")


class DescribedDataset(Dataset):
    """A data set of which one side knows a part only: class names without rows, or the rows of one client."""

    def __post_init__(self) -> None:
        """Nothing to check: rows are the other side's."""


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
    """The rows of records, with labels as positions in `names` (None: the names that occur, sorted), and the names.

    Args:
        path: what the records come from, for messages.
        found: the records.
        text, label: columns; a label of None: rows have none.
        targets: what labels are: "classes" or ""; "numbers", which `names` or the column call; "labels", several a row.
        form: the format of the file, with the decimal sign of labels.
        say: is told what was detected of the labels.

    Raises:
        DataError: the file can't be read, lacks a column, or holds a label that is not in `names`.
    """
    kinds = {"numbers": "number", "labels": "auto" if AND in (label or "") else "labels"}
    kind = kinds.get(targets, "class" if names else "auto")
    table = read(path, found, Names(text, label, None, "--ROLE-column COLUMN", kind, "", form))
    if table.labels is None:
        return Rows(table.texts), ()
    if targets == "numbers":
        for note in table.labels.notes:
            say(note)
    if targets == "numbers":
        return Rows(table.texts, build_array(table.labels)), tuple(names or (str(label),))
    if targets == "labels":
        known = tuple(names or label_names(table.labels, path))
        where = f"belong to the federation, whose labels are {', '.join(map(repr, known[:20]))}"
        return Rows(table.texts, build_matrix(table.labels, known, path, where)), known
    if table.labels.kind != "class":
        raise DataError(
            f"FP3161 the column {label!r} of {path} holds {_CALLED[table.labels.kind]}, no classes; say so with --task "
            "'regression(mean=50, deviation=10)' or multi_label"
        )
    values = list(table.labels.values)
    known = tuple(names or sorted(set(values)))
    position = {name: i for i, name in enumerate(known)}
    unknown = sorted(set(values) - position.keys())
    if unknown:
        shown = ", ".join(repr(name) for name in unknown[:5])
        raise DataError(
            f"FP3162 {path} has {len(unknown)} label{'' if len(unknown) == 1 else 's'} in column {label!r} that the "
            f"federation does not know: {shown}; its labels are {', '.join(map(repr, known[:20]))}"
        )
    return Rows(table.texts, np.array([position[name] for name in values], np.int64)), known

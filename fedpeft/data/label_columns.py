"""A user's label column: one class per row, a number to predict, or any of several labels.

A column contains numbers if some have fractions, or if most rows have a whole number of their own. Lists are several
labels, and so are several columns of 0 and 1 (`label="toxic + insult"`). Everything else is classes, including a few
different whole numbers. `label_type` overrides this choice.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.numeric_words import (
    COMMA,
    MANY,
    convert_decimal,
    describe_numbers,
    find_decimal_comma_example,
    has_mostly_distinct,
    is_comma_only,
    parse_numbers,
    suggest_decimal,
)
from fedpeft.data.table_format import AUTO, DETECT, TableFormat
from fedpeft.errors import ConfigError, DataError, shorten_value

Kind = Literal["class", "number", "labels"]
KINDS = ("auto", "class", "number", "labels")
"""Legal label types; auto: detected from the values."""

AND = " + "
"""Separator between the names of columns that are read together."""

BETWEEN = ";"
"""Separator between the labels of a row that are written as one text."""

_LEGAL = {
    "auto": (("word", "number", "list"), "a word or an integer (a class), a number, or a list of labels"),
    "class": (("word", "number"), "a word or a number"),
    "number": (("word", "number"), "a finite number"),
    "labels": (("word", "list"), f"a list of labels, or one text with {BETWEEN!r} between them"),
}
"""The sorts of values that are legal for each label type, and their description; see `_classify_value`."""

_YES_NO = {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True, "0,0": False, "1,0": True}


@dataclass(frozen=True)
class Labels:
    """Labels of a column.

    Attributes:
        kind: their type.
        values: one str, float or tuple of str per row.
        names: names of labels that have columns of their own, in order; empty: labels are those that occur.
        notes: one line for each choice that was made automatically.
    """

    kind: Kind
    values: Sequence[Any]
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class LabelColumn:
    """Collector of the labels of one row after another.

    Attributes:
        column: its name, or several names joined by " + ".
        asked: the required type, one of `KINDS`.
        form: the format of the file, with its decimal sign.
    """

    column: str
    asked: str = "auto"
    form: TableFormat = DETECT
    _values: list[Any] = field(default_factory=list)
    _first: dict[str, tuple[str, Any]] = field(default_factory=dict)  # of each kind of value
    _known: dict[Any, Any] = field(default_factory=dict)  # rows with equal labels share them
    _commas: dict[str, str] = field(default_factory=dict)  # the place of each word with a comma, among numbers
    _has_points: bool = False  # whether other words have a decimal point

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of several columns; empty: there is one."""
        return tuple(self.column.split(AND)) if AND in self.column else ()

    def select_columns(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the `columns` to read from a record; empty if one column has the joined name."""
        return () if self.column in record else self.columns

    def add(self, value: Any, where: str) -> None:
        """Add a row's value.

        Raises:
            DataError: it is not a label of the required type, or of any; the message names the row.
        """
        if isinstance(value, np.generic | np.ndarray):
            value = value.tolist()
        if isinstance(value, Decimal):  # of Parquet and Arrow
            value = float(value)
        if self.asked == "labels" and (value is None or (isinstance(value, str) and not value.strip())):
            value = []
        sort = _classify_value(value)
        sorts, legal = _LEGAL[self.asked]
        if sort not in sorts:
            must = f"{where}: the column {self.column!r} must hold {legal}"
            raise DataError(f"FP3066 {must}, got {shorten_value(value)}")
        match self.asked, sort:
            case "class", "number":
                value, sort = _format_number(value), "word"
            case "number", _:
                value, sort = self._parse_number_or_comma(value, where), "number"
            case "labels", "word":
                value, sort = list(filter(str.strip, str(value).split(BETWEEN))), "list"
        if sort == "list":
            value = tuple(dict.fromkeys(str(label).strip() for label in value))
        self._first.setdefault(sort, (where, value))
        self._values.append(value if sort == "number" else self._known.setdefault((type(value), value), value))

    def add_columns(self, values: Sequence[Any], where: str) -> None:
        """Add a row's values of several columns, each 0 or 1.

        Raises:
            DataError: a value is neither; the message names the row.
        """
        held = []
        for column, value in zip(self.columns, values, strict=True):
            yes = _YES_NO.get(str(value).strip().lower())
            if yes is None:
                raise DataError(
                    f"FP3067 {where}: the column {column!r} must hold 0 or 1, since it is one of several labels, got "
                    f"{shorten_value(value)}"
                )
            held += [column] if yes else []
        self._values.append(self._known.setdefault((tuple, tuple(held)), tuple(held)))

    def parse(self) -> Labels:
        """Return the labels, with the type that fits all values.

        Raises:
            DataError: values have several types, or numbers may be meant as classes.
        """
        if not self._first and self._values:
            if self.asked in ("class", "number"):
                raise DataError(
                    f"FP3068 {self.column!r} names several columns, which are several labels; leave out "
                    f"label_type={self.asked}"
                )
            return Labels("labels", self._values, self.columns, (f"taken as multi-label: {self.column}",))
        if "list" in self._first:
            if len(self._first) > 1:
                where, value = next(v for sort, v in self._first.items() if sort != "list")
                raise DataError(
                    f"FP3069 {where}: the column {self.column!r} contains lists in other rows, got "
                    f"{shorten_value(value)}; give lists in all rows"
                )
            return Labels("labels", self._values, (), self._note("multi-label: lists of labels"))
        if self.asked == "number":
            return self._convert_to_numbers()
        if "number" in self._first:
            return self._parse_numbers()
        spelled: dict[Any, str] = {}
        words = [spelled.setdefault((type(value), value), str(value).strip()) for value in self._values]
        if self.asked == "class":
            return Labels("class", words)
        if what := describe_numbers(words, self.form.decimal):
            note = f"regression: {what}; label_type=class makes classes of the column {self.column}"
            numbers = [self._parse_number(word, f"row {i}") for i, word in enumerate(words, 1)]
            return Labels("number", numbers, (), self._note(note))
        if shown := find_decimal_comma_example(words):
            return self._parse_commas(words, shown)
        return Labels("class", words, (), self._list_doubts(words))

    def _parse_commas(self, words: Sequence[str], shown: str) -> Labels:
        """Return the numbers that many words with commas are.

        Raises:
            DataError: they may be classes, or numbers with thousands.
        """
        if self.form.decimal == AUTO and is_comma_only(set(words)):
            numbers = [float(convert_decimal(word, COMMA)) for word in words]
            return Labels("number", numbers, (), self._note(f"regression: {_AS_COMMA}, such as {shown}"))
        where, _ = self._first["word"]
        raise DataError(
            f"FP3070 {where}: the column {self.column!r} holds what looks like numbers with a decimal comma, such as "
            f"{shown!r}{self._suggest_decimal(shown)}, or set label_type=class if these are classes"
        )

    def _parse_number_or_comma(self, value: Any, where: str) -> float | str:
        """Return a number, or a word with a comma: all words together decide whether that is a decimal comma."""
        word = value.strip() if self.form.decimal == AUTO and isinstance(value, str) else ""
        if COMMA in word:
            self._commas.setdefault(word, where)
            return word
        self._has_points |= "." in word
        return self._parse_number(value, where)

    def _convert_to_numbers(self) -> Labels:
        """Return the values as numbers, as the user requires.

        Raises:
            DataError: words with commas have two readings, or none.
        """
        if not self._commas:
            return Labels("number", self._values)
        if self._has_points or not is_comma_only(self._commas.keys()):
            for word, where in self._commas.items():
                self._parse_number(word, where)
        numbers = [float(convert_decimal(v, COMMA)) if isinstance(v, str) else v for v in self._values]
        return Labels("number", numbers, (), (f"{_AS_COMMA}, such as {next(iter(self._commas))}",))

    def _parse_numbers(self) -> Labels:
        """Return the numbers of a column with floats; it may also contain integers and words of digits."""
        numbers = [self._parse_number(value, f"row {i}") for i, value in enumerate(self._values, 1)]
        if self.asked == "auto" and all(number.is_integer() for number in numbers):
            where, value = self._first["number"]
            raise DataError(
                f"FP3071 {where}: the column {self.column!r} holds whole numbers written as "
                f"{shorten_value(value)}; set label_type=number to predict them, or label_type=class"
            )
        return Labels("number", numbers, (), self._note("regression: numbers with fractions"))

    def _parse_number(self, value: Any, where: str) -> float:
        try:
            number = float(convert_decimal(value.strip(), self.form.decimal) if isinstance(value, str) else value)
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            must = f"{where}: the column {self.column!r} must hold a finite number"
            raise DataError(f"FP3072 {must}, got {shorten_value(value)}{self._suggest_decimal(str(value).strip())}")
        return number

    def _suggest_decimal(self, word: str) -> str:
        setting = self.form.format_setting("decimal", "SIGN") if self.form.decimal == AUTO else ""
        return suggest_decimal(word, setting.replace("'SIGN'", "VALUE"))

    def _note(self, what: str) -> tuple[str, ...]:
        return () if self.asked != "auto" else (f"taken as {what}",)

    def _list_doubts(self, words: Sequence[str]) -> tuple[str, ...]:
        """Return reasons why values taken as classes may be something else."""
        names, doubts = set(words), []
        if joined := sum(BETWEEN in name for name in names):
            doubts.append(
                f"taken as classes, {joined:,} of whose {len(names):,} names have {BETWEEN!r} in them; "
                "label_type=labels makes several labels of such a text"
            )
        if len(names) > MANY and parse_numbers(names):
            doubts.append(
                f"taken as classes, {len(names):,} different whole numbers; label_type=number predicts them as numbers"
            )
        elif self.form.decimal == AUTO and is_comma_only(names):
            doubts.append(
                f"taken as classes, {len(names):,} of them, such as {min(names)}; decimal=',' predicts them as numbers"
            )
        elif has_mostly_distinct(words):
            doubts.append(
                f"taken as classes, {len(names):,} of them in {len(words):,} rows; if they are meant as numbers, "
                "label_type=number reports the first one that is not"
            )
        return tuple(doubts)


def _classify_value(value: Any) -> str:
    """Return the type of a value: "word" (or an integer), "number", "list" of words; empty: none of them."""
    if isinstance(value, str):
        return "word" if value.strip() else ""
    if isinstance(value, float):
        return "number" if math.isfinite(value) else ""
    if isinstance(value, int):
        return "word"
    if isinstance(value, list | tuple) and all(isinstance(v, str | int) and str(v).strip() for v in value):
        return "list"
    return ""


def _format_number(number: float) -> str:
    """Return the class name of a number: "2" for 2.0; different numbers get different names."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number).removesuffix(".0")


_AS_COMMA = "numbers with a decimal comma (decimal=',')"


def parse_names(text: str, least: int = 2) -> tuple[str, ...]:
    """Return the names in a user's "a,b,c", in that order.

    Raises:
        ConfigError: there are fewer than `least`, or one occurs twice.
    """
    names = tuple(word.strip() for word in text.split(",") if word.strip())
    if len(set(names)) < max(least, len(names)):
        raise ConfigError(
            f"FP1106 labels={text!r} must name at least {'two classes' if least == 2 else 'one'}, each once: a,b,c"
        )
    return names


def sort_labels(labels: Collection[str]) -> tuple[str, ...]:
    """Return the distinct labels, sorted, numbers by value; "1" and "01" differ."""
    numbers = all(label.isdecimal() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label) if numbers else 0, label)))


def encode_labels(
    train: Sequence[str], test: Sequence[str], name: str
) -> tuple[tuple[str, ...], NDArray[np.int64], NDArray[np.int64]]:
    """Return the names of the training labels in order, and both parts' labels as int64 (rows,) positions in them.

    Raises:
        DataError: a test label does not occur in training.
    """
    names = sort_labels(set(train))
    return names, find_positions(train, names, name), find_positions(test, names, name)


def find_positions(
    labels: Sequence[str], names: Sequence[str], name: str, *, are_given: bool = False
) -> NDArray[np.int64]:
    """Return the position of each label among `names`, int64 (rows,).

    `are_given` is true if a user gave the names; otherwise they are those of the training examples.

    Raises:
        DataError: a label is not among the names.
    """
    position = {label: i for i, label in enumerate(names)}
    unseen = sorted(set(labels) - position.keys())
    if unseen:
        shown = ", ".join(repr(label) for label in unseen[:5])
        raise DataError(
            f"FP3073 {name}: {len(unseen)} labels are not among the given names, {', '.join(names[:20])}: {shown}; add "
            "them to labels, or remove their rows (label=COLUMN selects the column)"
            if are_given
            else f"FP3074 {name}: {len(unseen)} of the test labels do not occur in the training examples: {shown}; "
            "remove their rows, or add training examples with these labels"
        )
    return np.array([position[label] for label in labels], np.int64)


def collect_label_names(labels: Labels, name: str) -> tuple[str, ...]:
    """Return the names of classes or labels: their columns, or those that occur, sorted (numbers by value).

    Raises:
        DataError: rows may have several labels, and none has one.
    """
    if labels.names:
        return labels.names
    if labels.kind == "class":
        return sort_labels(set(labels.values))
    distinct = {label for row in labels.values for label in row}
    if not distinct:
        raise DataError(f"FP3075 {name}: no training example has a label; check the column")
    return sort_labels(distinct)


def build_matrix(labels: Labels, names: Sequence[str], name: str, where: str) -> NDArray[Any]:
    """Return whether each row has each of the labels `names`, int8 (rows, names).

    Raises:
        DataError: a row has another label; `where` completes the message "labels do not ...".
    """
    position = {label: i for i, label in enumerate(names)}
    made = np.zeros((len(labels.values), len(names)), np.int8)
    unseen: dict[str, None] = {}
    for row, held in enumerate(labels.values):
        for label in held:
            if label in position:
                made[row, position[label]] = 1
            else:
                unseen[label] = None
    if unseen:
        shown = ", ".join(repr(label) for label in list(unseen)[:5])
        raise DataError(f"FP3076 {name}: {len(unseen)} labels do not {where}: {shown}")
    return made


def build_array(labels: Labels) -> NDArray[np.float64]:
    """Return the numbers as float64 (rows,)."""
    return np.array(cast(Sequence[float], labels.values), np.float64)


def compute_moments(numbers: NDArray[np.float64], name: str) -> tuple[float, float]:
    """Return the mean and standard deviation of the numbers.

    Raises:
        DataError: the numbers are all equal.
    """
    mean, deviation = float(numbers.mean()), float(numbers.std())
    if not deviation > 1e-12 * abs(mean):
        raise DataError(
            f"FP3077 {name}: the numbers to predict are all {mean:g}, so there is nothing to learn; choose another "
            "column"
        )
    return mean, deviation

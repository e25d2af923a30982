"""Records of words with a tag each, as in files for named entities: two columns with lists of equal length.

The columns are those that the user names, or tokens (or words) and ner_tags (or tags, labels). Tags are names. Whole
numbers are positions in the names that a user gives, or names themselves. Parquet, Arrow and saved files of the
`datasets` library contain names for their numbers (`fedpeft.data.record_files`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedpeft.data.conll import NER_TAGS, TOKENS
from fedpeft.data.instruction_columns import ColumnReading, Records
from fedpeft.data.label_columns import sort_labels
from fedpeft.data.record_files import name_incomplete_part
from fedpeft.data.text_column import TextWriter
from fedpeft.errors import DataError, shorten_value
from fedpeft.parts import suggest_legal

TASK = "token_labels"
WORDS, TAGS = (TOKENS, "words"), (NER_TAGS, "tags", "labels")
TEXT, LABEL = "text", "label"
"""Settings of a user who names no columns."""


def choose_tag_reading(
    first: Mapping[str, Any], text: str, label: str | None, packed_into: str
) -> ColumnReading | None:
    """Return how to read words and their tags, or None if the data contain none.

    Args:
        first: the first record.
        text: the user's text column.
        label: the user's label column; None: there is none.
        packed_into: the column for packed rows.
    """
    columns = _find_columns(first, text, label)
    if columns is None:
        return None
    words, tags = columns
    return ColumnReading(
        f"token labels: the words of the column {words!r}, tagged by {tags!r}",
        lambda records, source: _pack_records(records, words, tags, packed_into, source),
        {"text": words, "label": tags},
        TASK,
    )


def find_word_column(first: Mapping[str, Any], text: str) -> str | None:
    """Return the column that contains words as lists, or None."""
    names = [text] if text in first or text != TEXT else WORDS
    return next((name for name in names if _is_list(first.get(name), str)), None)


def _find_columns(first: Mapping[str, Any], text: str, label: str | None) -> tuple[str, str] | None:
    words = find_word_column(first, text)
    if words is None or label is None:
        return None
    names = [label] if label in first or label != LABEL else TAGS
    tags = next((name for name in names if name != words and _is_list(first.get(name), str | int)), None)
    return None if tags is None else (words, tags)


def _is_list(value: Any, kind: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, kind) for item in value)


def _pack_records(
    records: Records, words: str, tags: str, packed_into: str, source: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the records with their words and tags as one text, tags by name or number.

    Raises:
        DataError: a row has other values, or not as many tags as words; the message names the row.
    """
    for place, record in records:
        where = f"{place} of {source}"
        for column in (words, tags):
            if column not in record:
                hint = suggest_legal(column, map(str, record))
                raise DataError(f"FP3006 {name_incomplete_part(place, source)} has no column {column!r}; {hint}")
        if not _is_list(record[words], str):
            raise DataError(
                f"FP3187 {where}: the column {words!r} must hold a list of words, got {shorten_value(record[words])}"
            )
        if not _is_list(record[tags], str | int):
            raise DataError(
                f"FP3188 {where}: the column {tags!r} must hold a list of tags, got {shorten_value(record[tags])}"
            )
        if len(record[words]) != len(record[tags]):
            raise DataError(
                f"FP3189 {where} has {len(record[words])} words in {words!r} and {len(record[tags])} tags in {tags!r}; "
                "give each word one tag"
            )
        if any("\ud800" <= sign <= "\udfff" for word in record[words] if not word.isascii() for sign in word):
            raise DataError(
                f"FP3190 {where}: the column {words!r} holds half of a character (a lone surrogate); remove it"
            )
        row = {"words": list(record[words]), "tags": [t.strip() if isinstance(t, str) else t for t in record[tags]]}
        yield place, {**record, packed_into: json.dumps(row)}


def index_tags(names: Sequence[str], *, are_given: bool) -> dict[str | int, int]:
    """Return the position of each tag: of each name, and of each whole number that stands for a name.

    Whole numbers are names, such as "3". If a user gave the names and none of them is a number, they are positions.
    """
    position: dict[str | int, int] = {name: i for i, name in enumerate(names)}
    numbers = {int(name): i for i, name in enumerate(names) if name.isdecimal()}
    if are_given and not numbers:
        numbers = {i: i for i in range(len(names))}
    return position | numbers


def convert_tags(
    tables: Sequence[Sequence[str]], name: str, given_names: Sequence[str] | None, where: str
) -> tuple[list[Sequence[str]], tuple[str, ...]]:
    """Return packed rows with tags as positions among the names of labels, and these names.

    Args:
        tables: packed rows of each split, the training split first.
        name: what messages call the data.
        given_names: the names of labels, in order; None: those that occur in the first table, sorted.
        where: the end of the message "tags do not ...".

    Raises:
        DataError: a tag has no name, or the first table has only one tag.
    """
    names = tuple(given_names or sort_labels({str(tag) for row in tables[0] for tag in json.loads(row)["tags"]}))
    if len(names) < 2:
        raise DataError(f"FP3191 {name} has one tag only in its training examples, {names[0]!r}; token labels need two")
    position = index_tags(names, are_given=bool(given_names))
    unseen: dict[str, None] = {}
    made = []
    for table in tables:
        texts = TextWriter()
        for row in table:
            held = json.loads(row)
            unseen |= {str(tag): None for tag in held["tags"] if tag not in position}
            texts.append(json.dumps(held | {"tags": [position.get(tag, 0) for tag in held["tags"]]}))
        made.append(texts.create_column())
    if unseen:
        shown = ", ".join(map(repr, list(unseen)[:5]))
        raise DataError(f"FP3192 {name}: {len(unseen)} tags do not {where}: {shown}")
    return made, names

"""Pairs of source text, for an encoder, and target text, for a decoder: one JSON text per row.

    {"source": "translate English to German: That is good.", "target": "Das ist gut."}

The model's tokenizer tokenizes both separately. A target ends with the end token, unless it was truncated, so that no
model learns to stop in the middle.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fedpeft.data.conversations import pack_prompts
from fedpeft.data.label_columns import AND
from fedpeft.data.prompt_templates import CHAT
from fedpeft.data.record_files import name_incomplete_part, read_records
from fedpeft.data.rows import Rows
from fedpeft.data.table_format import DETECT, TableFormat
from fedpeft.errors import ConfigError, DataError
from fedpeft.parts import suggest_legal

INPUT, TARGET = "input", "target"
"""Default columns of source and target texts."""

Records = Iterable[tuple[str, Mapping[str, Any]]]


def pack_pair(source: str, target: str) -> str:
    """Return source and target text as a row."""
    return json.dumps({"source": source, "target": target})


def parse_pair(row: str) -> tuple[str, str]:
    """Return source and target text of a row.

    Raises:
        DataError: the row is not a pair.
    """
    try:
        found = json.loads(row)
        return str(found["source"]), str(found["target"])
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"FP3150 seq2seq needs pairs of texts, got {row!r:.60}; name both columns: "
            "file(path=..., text=COLUMN, target=COLUMN)"
        ) from None


def pack_targets(
    found: Records, columns: tuple[str, str], text: str, source: str, template: str | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the records with a packed pair in the column `text`.

    Args:
        found: records with the names of their places.
        columns: the source column, perhaps several as "a + b", and the target column.
        text: the column for packed rows.
        source: name of the records' source, for messages.
        template: the template of source texts, see `fedpeft.data.prompt_templates`; None: the column as it stands.

    Raises:
        ConfigError: the template is a chat template, or does not exist.
        DataError: a record lacks one of the two texts.
    """
    read, target = columns
    if template == CHAT:
        raise ConfigError(
            "FP1112 template=chat is for conversations, but target is for pairs of texts; leave one of them out"
        )
    if template is not None:
        for place, record in pack_prompts(found, template, target, text, source):
            made = json.loads(record[text])
            yield place, {**record, text: pack_pair(made["prompt"], made["answer"])}
        return
    names = [read] if AND not in read else read.split(AND)
    for place, record in found:
        values = [get_column_text(record, name, place, source) for name in names]
        asked = values[0] if len(names) == 1 else " ".join(f"{n}: {v}" for n, v in zip(names, values, strict=True))
        yield place, {**record, text: pack_pair(asked, get_column_text(record, target, place, source))}


def read_pair_rows(path: str, read: str, target: str, given: TableFormat = DETECT) -> Rows:
    """Return the pairs of a file.

    Raises:
        DataError: the file can't be read, has no rows, or a row lacks one of the two texts.
    """
    rows = [str(record[read]) for _, record in pack_targets(read_records(path, given), (read, target), read, path)]
    if not rows:
        raise DataError(f"FP3028 {path} has no rows")
    return Rows(rows)


def get_column_text(record: Mapping[str, Any], column: str, place: str, source: str) -> str:
    """Return the text in a record's column.

    Raises:
        DataError: there is no such column, or it holds no text; the message names the record.
    """
    if column not in record:
        raise DataError(
            f"FP3006 {name_incomplete_part(place, source)} has no column {column!r}; "
            f"{suggest_legal(column, map(str, record))}"
        )
    value, where = record[column], f"{place} of {source}"
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"FP3151 {where}: the column {column!r} must hold a text, got {value!r:.40}")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise DataError(
            f"FP3152 {where}: the column {column!r} holds half of a character (a lone surrogate); remove it"
        )
    return value


def tokenize_source(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a source text."""
    return list(tokenizer(text)["input_ids"])


def cut_source(tokenizer: Any, text: str, most: int) -> list[int]:
    """Return at most `most` token ids of a source text, with special tokens at both ends."""
    return list(tokenizer(text, truncation=True, max_length=most)["input_ids"])


def tokenize_target(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a target text, including the end token."""
    ids = list(tokenizer(text_target=text)["input_ids"])
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, int(end)]

"""CoNLL files: one word with its tags per line, in columns, and a blank line after each sentence.

Columns are separated by tabs if the line contains one, and by spaces otherwise. The first column is the word and the
last is the tag of named entities (`ner_tags`). Those between are `column_2`, `column_3` and so on (CoNLL-2003: Tjong
Kim Sang and De Meulder, 2003). Lines that begin with -DOCSTART- separate documents and are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from fedpeft.errors import DataError

TOKENS, NER_TAGS = "tokens", "ner_tags"
BETWEEN_DOCUMENTS = "-DOCSTART-"


def read_sentences(name: str, stream: TextIO) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Yield the sentences of a CoNLL file, each with the place of its first line.

    Raises:
        DataError: the file is empty, or a line has no tag or other columns than the first; the message names the line.
    """
    columns: list[str] = []
    sentence: list[list[str]] = []
    first = 0
    for number, line in enumerate(stream, 1):
        fields = [field.strip() for field in line.rstrip("\r\n").split("\t")] if "\t" in line else line.split()
        if not any(fields) or fields[0] == BETWEEN_DOCUMENTS:
            if sentence:
                yield f"line {first}", _build_columns(columns, sentence)
            sentence = []
            continue
        if len(fields) < 2 or not all(fields):
            raise DataError(
                f"FP3178 line {number} of {name} must hold a word and its tag in columns, got {line.strip()!r:.60}"
            )
        columns = columns or [TOKENS, *(f"column_{i}" for i in range(2, len(fields))), NER_TAGS]
        if len(fields) != len(columns):
            raise DataError(f"FP3179 line {number} of {name} has {len(fields)} columns, the first line {len(columns)}")
        first = first if sentence else number
        sentence.append(fields)
    if sentence:
        yield f"line {first}", _build_columns(columns, sentence)
    if not columns:
        raise DataError(f"FP3114 {name} is empty; give a file with at least one example")


def _build_columns(names: list[str], sentence: list[list[str]]) -> dict[str, list[str]]:
    return {name: list(values) for name, values in zip(names, zip(*sentence, strict=True), strict=True)}

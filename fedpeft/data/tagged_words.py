"""Words and a tag for each, as one row: {"words": [...], "tags": [...]}, one JSON text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fedpeft.data.examples import IGNORED
from fedpeft.errors import DataError


def parse_row(row: Any) -> tuple[list[str], list[int]]:
    """What a row holds.

    Raises:
        DataError: it is no JSON object of `words` and as many `tags`.
    """
    try:
        found = json.loads(row)
        words, tags = found["words"], found["tags"]
        if not words or len(words) != len(tags):
            raise ValueError("not as many tags as words")
        return [str(word) for word in words], [int(tag) for tag in tags]
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:  # 1e999; nested too deep
        raise DataError(
            f"FP3147 a row of token labels must be JSON of words and as many tags: {row!r:.60} ({error})"
        ) from None


def check_tags(rows: Sequence[str], names: Sequence[str], which: str) -> None:
    """Refuse rows with tags that are no positions in `names`, nor `IGNORED`: of words that are not asked.

    Raises:
        DataError: says which row, and of `which`; also as `parse_row`.
    """
    if not names:
        raise DataError(f"FP3148 {which} have tags, and the data set has no label_names, of which tags are positions")
    for place, row in enumerate(rows):
        for tag in parse_row(row)[1]:
            if not 0 <= tag < len(names) and tag != IGNORED:
                raise DataError(
                    f"FP3149 {which}: row {place} has the tag {tag}, and there are {len(names)} label_names, of tags 0 "
                    f"to {len(names) - 1}"
                )

"""Words with a tag each, as one JSON text per row: {"words": [...], "tags": [...]}."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fedpeft.errors import DataError

IGNORED = -100
"""The label of a token that does not count."""


def parse_row(row: Any) -> tuple[list[str], list[int]]:
    """Return the words and the tags of a row.

    Raises:
        DataError: it is not a JSON object of `words` and as many `tags`.
    """
    try:
        found = json.loads(row)
        words, tags = found["words"], found["tags"]
        if not words or len(words) != len(tags):
            raise ValueError("not as many tags as words")
        return [str(word) for word in words], [int(tag) for tag in tags]
    except (
        TypeError,
        ValueError,
        KeyError,
        OverflowError,
        RecursionError,
    ) as error:  # such as 1e999, or nested too deep
        raise DataError(
            f"FP3147 a row of token labels must be JSON of words and as many tags: {row!r:.60} ({error})"
        ) from None


def check_tags(rows: Sequence[str], names: Sequence[str], which: str) -> None:
    """Reject rows with tags that are neither positions in `names` nor `IGNORED`, which marks words without a label.

    Raises:
        DataError: names the row in `which`; see also `parse_row`.
    """
    if not names:
        raise DataError(f"FP3148 {which} have tags, but the dataset has no label_names; give one name for each tag")
    for place, row in enumerate(rows):
        for tag in parse_row(row)[1]:
            if not 0 <= tag < len(names) and tag != IGNORED:
                raise DataError(
                    f"FP3149 {which}: example {place} has the tag {tag}, but {len(names)} label_names allow "
                    f"only 0 to {len(names) - 1}"
                )

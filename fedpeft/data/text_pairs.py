"""Two texts that belong together, as one row: {"query": ..., "document": ...}, one JSON text."""

from __future__ import annotations

import json

SIDES = ("query", "document")
"""What is asked with, and what is to be found."""


def pack_pair(query: str, document: str) -> str:
    """The row of two texts."""
    return json.dumps(dict(zip(SIDES, (query, document), strict=True)))


def get_side(row: str, name: str) -> str:
    """One of the texts of a row; `name` is one of `SIDES`."""
    text: str = json.loads(row)[name]
    return text

"""Pairs of texts for retrieval, as one JSON text per row: {"query": ..., "document": ...}."""

from __future__ import annotations

import json

SIDES = ("query", "document")
"""Names of the text to search with, and of the text to find."""


def pack_pair(query: str, document: str) -> str:
    """Return two texts as a row."""
    return json.dumps(dict(zip(SIDES, (query, document), strict=True)))


def get_side(row: str, name: str) -> str:
    """Return one text of a row; `name` is one of `SIDES`."""
    text: str = json.loads(row)[name]
    return text

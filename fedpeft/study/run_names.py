"""Readable names of runs: their folders, without what all of them share."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

TOKEN = re.compile(r"[^-_. /]*[-_. /]*")
"""A word of a folder's name, with the separators behind it."""


def name_groups(groups: Sequence[Sequence[str]]) -> list[str]:
    """Return a different name for each group of different folders; the runs of a group differ only in their seed.

    A single run is named after its folder, several after the words that their folders begin with, or after the first
    folder. The words that the names of all groups begin with are left out, as long as each name keeps a letter.
    """
    folders = [folder for group in groups for folder in group]
    names = dict(zip(folders, _find_unique_ends(folders), strict=True))
    shared = [names[g[0]] if len(g) == 1 else _find_shared_words([names[folder] for folder in g]) for g in groups]
    return _drop_shared_words(
        [
            name if name and shared.count(name) == 1 else f"{names[group[0]]} and {len(group) - 1} more"
            for name, group in zip(shared, groups, strict=True)
        ]
    )


def _find_unique_ends(folders: Sequence[str]) -> list[str]:
    """Return the last part of each folder, or more parts if last parts are equal."""
    parts = [Path(folder).parts for folder in folders]
    deepest = max(map(len, parts), default=1)
    depth = next((d for d in range(1, deepest) if len({p[-d:] for p in parts}) == len(parts)), deepest)
    return ["/".join(part[-depth:]) for part in parts]


def _drop_shared_words(names: list[str]) -> list[str]:
    shared = len(_find_shared_start([_split_words(name)[:-1] for name in names])) if len(names) > 1 else 0
    for count in range(shared, 0, -1):
        short = ["".join(_split_words(name)[count:]) for name in names]
        if all(any(c.isalpha() for c in name) for name in short):
            return short
    return names


def _find_shared_words(names: Sequence[str]) -> str:
    return "".join(_find_shared_start([_split_words(name) for name in names])).rstrip("-_. /")


def _find_shared_start(lists: Sequence[list[str]]) -> list[str]:
    """Return the words that all lists begin with."""
    columns = itertools.takewhile(lambda words: len(set(words)) == 1, zip(*lists, strict=False))
    return [words[0] for words in columns]


def _split_words(name: str) -> list[str]:
    return [word for word in TOKEN.findall(name) if word]

"""Rows of one side of a federation: a file of texts whose classes are known by name, and what it says as a data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedpeft.data import user_rows
from fedpeft.data.datasets.file import records
from fedpeft.data.rows import Dataset, Rows
from fedpeft.errors import DataError


class Described(Dataset):
    """A data set of which one side knows a part only: class names without rows, or the rows of one client."""

    def __post_init__(self) -> None:
        """Nothing to check: rows are the other side's."""


def labelled_rows(path: str, text: str, label: str | None, names: Sequence[str] | None) -> tuple[Rows, tuple[str, ...]]:
    """The rows of a file, with labels as positions in `names` (None: the names that occur, sorted), and the names.

    Raises:
        DataError: the file can't be read, lacks a column, or holds a label that is not in `names`.
    """
    table = user_rows.read(path, records(path), user_rows.Names(text, label, None))
    if table.labels is None:
        return Rows(table.texts), ()
    known = tuple(names or sorted(set(table.labels)))
    position = {name: i for i, name in enumerate(known)}
    unknown = sorted(set(table.labels) - position.keys())
    if unknown:
        shown = ", ".join(repr(name) for name in unknown[:5])
        raise DataError(
            f"{path} has {len(unknown)} labels in column {label!r} that the federation does not know: {shown}; "
            f"its labels are {', '.join(map(repr, known[:20]))}"
        )
    return Rows(table.texts, np.array([position[name] for name in table.labels], np.int64)), known

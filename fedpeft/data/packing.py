"""Packing of several short rows into one sequence, to save padding.

First fit, longest first, needs at most 11/9 of the fewest possible sequences (Johnson, 1973).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Bins = list[list[int]]
"""Rows of each sequence, in order."""


def pack_rows(lengths: Sequence[int] | np.ndarray, capacity: int) -> Bins:
    """Pack rows of these `lengths` into sequences of at most `capacity` tokens; no row is longer than that.

    Returns:
        Positions in `lengths`, each once.
    """
    bins: Bins = []
    free: list[int] = []
    for row in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[row])
        place = next((i for i, room in enumerate(free) if room >= length), len(bins))
        if place == len(bins):
            bins.append([])
            free.append(capacity)
        bins[place].append(row)
        free[place] -= length
    return bins


def pack_clients(lengths: Sequence[np.ndarray], capacity: int) -> list[Bins] | None:
    """Pack the rows of several clients separately, into equally many sequences each; the last ones may be empty.

    Args:
        lengths: lengths of each client's rows.
        capacity: tokens of a sequence.

    Returns:
        Each client's sequences, as positions in its rows; None if packing saves no sequence.
    """
    found = [pack_rows(own, capacity) for own in lengths]
    most = max(len(bins) for bins in found)
    if most >= max(len(own) for own in lengths):
        return None
    return [bins + [[] for _ in range(most - len(bins))] for bins in found]


Place = tuple[int, int, int]
"""Sequence of a row, its first position there, and its number of tokens."""


def find_places(bins: Bins, lengths: Sequence[int] | np.ndarray) -> list[Place]:
    """Return the place of each row, in the order of `lengths`."""
    found: dict[int, Place] = {}
    for sequence, rows in enumerate(bins):
        start = 0
        for row in rows:
            found[row] = (sequence, start, int(lengths[row]))
            start += int(lengths[row])
    return [found[row] for row in range(len(lengths))]

"""Several short rows in one sequence, so that less is padding: which rows lie together.

First fit, longest first: within 11/9 of the fewest sequences (Johnson, 1973).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Bins = list[list[int]]
"""For each sequence the rows in it, one behind the other."""


def pack_rows(lengths: Sequence[int] | np.ndarray, capacity: int) -> Bins:
    """Rows of these `lengths` in sequences of at most `capacity` tokens; each row is at most as long as one.

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
    """The rows of several clients, packed client by client, with equally many sequences each (the last ones empty).

    Args:
        lengths: of each client's rows.
        capacity: tokens of a sequence.

    Returns:
        For each client its sequences, as positions in its rows; None where packing does not make them fewer.
    """
    found = [pack_rows(own, capacity) for own in lengths]
    most = max(len(bins) for bins in found)
    if most >= max(len(own) for own in lengths):
        return None
    return [bins + [[] for _ in range(most - len(bins))] for bins in found]


Place = tuple[int, int, int]
"""Where a row lies: its sequence, its first position there, and its tokens."""


def find_places(bins: Bins, lengths: Sequence[int] | np.ndarray) -> list[Place]:
    """Where each row lies, in the order of `lengths`."""
    found: dict[int, Place] = {}
    for sequence, rows in enumerate(bins):
        start = 0
        for row in rows:
            found[row] = (sequence, start, int(lengths[row]))
            start += int(lengths[row])
    return [found[row] for row in range(len(lengths))]

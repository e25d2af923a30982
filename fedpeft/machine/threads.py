"""Threads of torch for work that comes in many similar pieces.

Threads of one operation wait for each other at its end. If other processes use the cores, two threads can take three
times as long as one, so the number is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import TypeVar

import torch

Piece = TypeVar("Piece")

TRIAL = (True, True, False, False, True)
"""Whether a trial's piece has all threads. The first one warms up and does not count; the order cancels a drift."""


def use_faster_threads(pieces: Iterable[Piece], most: int) -> Iterator[Piece]:
    """Yield the pieces, and set the number of torch's threads, `most` or one, for what the caller does with each.

    The first pieces try both numbers, and the others have the faster one.

    Args:
        pieces: of similar size.
        most: number of threads, at least 1.
    """
    seconds = {most: 0.0, 1: 0.0}
    for place, piece in enumerate(pieces):
        if place < len(TRIAL):
            threads = most if TRIAL[place] else 1
        elif place == len(TRIAL):
            threads = min(seconds, key=seconds.__getitem__)
        torch.set_num_threads(threads)
        begin = perf_counter()
        yield piece
        if 0 < place < len(TRIAL):
            seconds[threads] += perf_counter() - begin

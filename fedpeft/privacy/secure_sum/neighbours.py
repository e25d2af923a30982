"""Who shares masks with whom: all with all in small cohorts, a regular graph in large ones.

Bell et al. (CCS 2020, IACR ePrint 2020/704) show that a random k-regular graph with k = O(log n) hides each client
among the others as well as the complete graph does, at k masks a client instead of n. Ours is Harary's: clients stand
in a circle in an order drawn from the round, and each is joined with the k / 2 before and after it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import numpy as np

from fedpeft import seeds


@dataclass(frozen=True)
class Terms:
    """What all members of a sum have to agree on.

    Attributes:
        neighbours: of each client that was asked.
        threshold: share of the neighbours whose shares give a client's secret, below 1; how many clients may collude
            follows from it (`fedpeft.privacy.secure_sum.collusion`).
        bits: of the modulus, 1 to 32.
        length: of the summed vectors.
        context: names the federation, round and attempt: what was agreed for one sum is of no use in another.
        least: vectors without which nobody helps to take the masks off: they have shares of noise in them.
    """

    neighbours: int
    threshold: float
    bits: int
    length: int
    context: bytes
    least: int = 0

    @property
    def digest(self) -> bytes:
        """SHA-256 over all of them: who signs in one sum has signed in no other."""
        numbers = struct.pack(">IdIII", self.neighbours, self.threshold, self.bits, self.length, self.least)
        return hashlib.sha256(numbers + self.context).digest()

    @property
    def needed(self) -> int:
        """How many neighbours' shares give a client's secret: the least number above the threshold's share of them."""
        return min(self.neighbours, floor(self.threshold * self.neighbours) + 1)


def degree(clients: int, asked: int) -> int:
    """How many neighbours each of so many clients has in `graph`."""
    half = (asked + 1) // 2
    return clients - 1 if 2 * half >= clients - 1 else 2 * half


def graph(clients: Sequence[int], asked: int, seed: int, round_number: int) -> dict[int, list[int]]:
    """The neighbours of each client, sorted; nobody is its own, and being one is mutual.

    Args:
        clients: distinct ids.
        asked: neighbours of each, all in cohorts of no more than one above it; odd ones are rounded up.
        seed, round_number: what the order in the circle is drawn from.
    """
    n, half = len(clients), (asked + 1) // 2
    if degree(n, asked) == n - 1:
        return {client: sorted(set(clients) - {client}) for client in clients}
    circle = list(clients)
    seeds.create_generator(seed, "neighbours", round_number).shuffle(circle)
    ring = np.array(circle)
    offsets = [step for step in range(-half, half + 1) if step]
    return {int(ring[i]): sorted(int(ring[(i + step) % n]) for step in offsets) for i in range(n)}

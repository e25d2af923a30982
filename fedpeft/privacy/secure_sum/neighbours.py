"""The neighbors that share masks: all clients in small cohorts, a regular graph in large ones.

Bell et al. (CCS 2020, IACR ePrint 2020/704) consider random k-regular graphs with k = O(log n). They hide each client
among the others as well as the complete graph does, with k masks per client instead of n. Ours is Harary's: clients
stand in a circle, in an order drawn from the round. Each is joined with the k / 2 clients before and after it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import numpy as np

from fedpeft.machine import seeds


@dataclass(frozen=True)
class Terms:
    """The terms that all members of a sum must agree on.

    Attributes:
        neighbor_count: number of neighbors of each client that was asked.
        threshold: share of the neighbors whose shares give a client's secret, below 1. It decides how many clients may
            collude (`fedpeft.privacy.secure_sum.collusion`).
        bits: bits of the modulus, 1 to 32.
        length: length of the summed vectors.
        context: names the federation, round and attempt, so that values agreed for one sum are useless in another.
        least: the fewest vectors, which contain shares of noise; with fewer, no member helps to remove the masks.
    """

    neighbor_count: int
    threshold: float
    bits: int
    length: int
    context: bytes
    least: int = 0

    @property
    def digest(self) -> bytes:
        """SHA-256 over all terms: a signature in one sum is not valid in another."""
        numbers = struct.pack(">IdIII", self.neighbor_count, self.threshold, self.bits, self.length, self.least)
        return hashlib.sha256(numbers + self.context).digest()

    @property
    def needed_shares(self) -> int:
        """The number of neighbors' shares that give a client's secret: the least number above the threshold's share."""
        return min(self.neighbor_count, floor(self.threshold * self.neighbor_count) + 1)


def degree(clients: int, asked: int) -> int:
    """Return how many neighbors each of `clients` clients has in `graph`, if `asked` are asked for."""
    half = (asked + 1) // 2
    return clients - 1 if 2 * half >= clients - 1 else 2 * half


def graph(clients: Sequence[int], asked: int, seed: int, round_number: int) -> dict[int, list[int]]:
    """Return the neighbors of each client, sorted; the relation is symmetric, and no client is its own neighbor.

    Args:
        clients: distinct ids.
        asked: neighbors of each client. Cohorts of at most `asked` + 1 are complete; odd numbers are rounded up.
        seed: seed of the run.
        round_number: the round; with the seed it decides the order in the circle.
    """
    n, half = len(clients), (asked + 1) // 2
    if degree(n, asked) == n - 1:
        return {client: sorted(set(clients) - {client}) for client in clients}
    circle = list(clients)
    seeds.create_generator(seed, "neighbours", round_number).shuffle(circle)
    ring = np.array(circle)
    offsets = [step for step in range(-half, half + 1) if step]
    return {int(ring[i]): sorted(int(ring[(i + step) % n]) for step in offsets) for i in range(n)}

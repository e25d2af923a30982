"""Cyclic participation: each client rests and charges for `turns` - 1 rounds after its turn.

This follows the cyclic charging of FedBacys (Jeong and Pappas, 2025, arXiv 2504.12181), which groups clients by
battery. Here the groups are drawn once. The clients of the current group take part if their batteries last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedpeft.machine import seeds
from fedpeft.parts import setting
from fedpeft.wiring.sampling import AwareSampler, View, draw_clients, find_able_clients


@dataclass(frozen=True)
class Cyclic(AwareSampler):
    """Draws alike among the clients whose turn it is."""

    turns: int = setting(4, "groups that take turns", low=1)

    def choose(self, view: View, size: int, seed: int, round_number: int) -> list[int]:
        """See the module."""
        clients = len(view.levels)
        group = seeds.create_generator(seed, "turns").permutation(clients) % self.turns
        among = np.intersect1d(find_able_clients(view), np.flatnonzero(group == (round_number - 1) % self.turns))
        return draw_clients(among, view.weights, size, seed, round_number)


part = Cyclic

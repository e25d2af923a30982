"""Turns that go round: each client rests, and charges, for `turns` - 1 rounds after one in which it may be asked.

After the cyclic charging of FedBacys (Jeong and Yang, 2025, arXiv 2504.12181), whose clients are grouped by battery;
here the groups are drawn once, and of the one whose turn it is those take part whose batteries last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedpeft import seeds
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

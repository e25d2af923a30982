"""Clients on the cleanest grid: the members of a random pool whose round emits the fewest grams of CO2.

The pool keeps every client in play. The intensity is that of the hour of the round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedpeft.parts import setting
from fedpeft.wiring.sampling import AwareSampler, View, draw_clients, find_able_clients, select_best


@dataclass(frozen=True)
class Carbon(AwareSampler):
    """The clients of a random pool whose round emits least."""

    pool: float = setting(3.0, "size of the pool, in cohorts", low=1)

    def choose(self, view: View, size: int, seed: int, round_number: int) -> list[int]:
        """See the module."""
        pool = draw_clients(find_able_clients(view), view.weights, math.ceil(self.pool * size), seed, round_number)
        return select_best(
            -view.uses * view.get_intensity(round_number), np.array(pool, np.int64), size, seed, round_number
        )


part = Carbon

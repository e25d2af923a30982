"""EAFL: utility and battery, weighed against each other (Abdelmoniem and Arouj, 2022, arXiv 2208.04505).

    reward = f Util + (1 - f) Power,   Util = rows sqrt(loss^2) (T / t)^a where t > T,   Power = level - predicted use

Util is Oort's (Lai et al., OSDI 2021); both are scaled to at most 1. Clients that were never heard of count as the most
useful ones, so all are tried. Clients that a round would empty are not asked.

Deviations: a client tells the mean of its losses and not of their squares, so its square is taken; T is the median
time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedpeft.parts import setting
from fedpeft.wiring.sampling import AwareSampler, View, find_able_clients, select_best


@dataclass(frozen=True)
class Eafl(AwareSampler):
    """The clients with the largest reward of utility and battery."""

    f: float = setting(0.25, "weight of utility; 1 - f is that of the battery", low=0, high=1)
    a: float = setting(2.0, "how hard slow clients are punished", low=0)

    def choose(self, view: View, size: int, seed: int, round_number: int) -> list[int]:
        """See the module."""
        useful = view.rows * np.abs(view.losses)
        slow = np.median(view.seconds) / np.maximum(view.seconds, 1e-9)
        useful = useful * np.where(slow < 1, slow**self.a, 1.0)
        most = np.nanmax(useful) if np.isfinite(useful).any() else 1.0
        useful = np.where(np.isfinite(useful), useful / max(most, 1e-12), 1.0)
        plugged = np.isinf(view.capacities)
        left = np.where(
            plugged, 1.0, (view.levels - view.uses) / np.where(plugged, 1.0, np.maximum(view.capacities, 1e-9))
        )
        return select_best(self.f * useful + (1 - self.f) * left, find_able_clients(view), size, seed, round_number)


part = Eafl

"""Cohorts drawn uniformly among the clients whose batteries last for the round."""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.wiring.sampling import AwareSampler, View, draw_clients, find_able_clients


@dataclass(frozen=True)
class Battery(AwareSampler):
    """Draws alike among the clients that can finish the round."""

    def choose(self, view: View, size: int, seed: int, round_number: int) -> list[int]:
        """See the module."""
        return draw_clients(find_able_clients(view), view.weights, size, seed, round_number)


part = Battery

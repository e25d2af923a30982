"""Among the clients whose batteries last for the round, all alike: those that would drop out are not asked."""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.run.sampling import AwareSampler, View, able, drawn


@dataclass(frozen=True)
class Battery(AwareSampler):
    """Draws alike among the clients that can finish the round."""

    def choose(self, view: View, size: int, seed: int, round: int) -> list[int]:
        """See the module."""
        return drawn(able(view), view.weights, size, seed, round)


part = Battery

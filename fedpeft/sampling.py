"""Which clients take part in a round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedpeft import seeds
from fedpeft.errors import ConfigError


def cohort_size(setting: int | float | str, clients: int) -> int:
    """The cohort's size: a whole number is a count, a float a fraction of the clients, "all" is everyone.

    Raises:
        ConfigError: it asks for no client, or for more than there are.
    """
    if setting == "all":
        return clients
    if isinstance(setting, float) and 0 < setting <= 1:
        return max(1, round(setting * clients))
    if isinstance(setting, int) and 1 <= setting <= clients:
        return setting
    raise ConfigError(
        f"cohort={setting} is neither a fraction of the clients (above 0.0, at most 1.0), nor a whole number from 1 to "
        f"the number of clients ({clients}), nor all"
    )


@dataclass(frozen=True)
class FixedSize:
    """`size` of `clients` clients a round, without replacement.

    Attributes:
        weights: relative chance of each client to be the next one drawn; empty: all alike.
    """

    clients: int
    size: int
    weights: tuple[float, ...] = ()

    def draw(self, seed: int, round: int) -> list[int]:
        """The cohort of a round (from 1), ascending: a function of seed and round alone."""
        chances = np.array(self.weights) / sum(self.weights) if len(set(self.weights)) > 1 else None
        chosen = seeds.generator(seed, "cohort", round).choice(self.clients, self.size, replace=False, p=chances)
        return sorted(int(c) for c in np.asarray(chosen))

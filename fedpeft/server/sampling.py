"""Which clients take part in a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedpeft import seeds

FEW = 10_000
"""Up to so many clients all are asked for what concerns all: the head's start, and evaluations on their own rows."""

MEASURED = 4_000
"""So many of more: they say what all do, and asking takes no longer than it does for `FEW`."""


def measured(clients: int, seed: int) -> list[int]:
    """Who is asked for what concerns all `clients`, ascending: all of them, or of very many `MEASURED`, drawn once."""
    if clients <= FEW:
        return list(range(clients))
    return FixedSize(clients, MEASURED).draw(seed, 0)


class Sampler(Protocol):
    """Draws the cohorts."""

    def draw(self, seed: int, round: int) -> list[int]:
        """The cohort of a round (from 1), ascending client ids."""
        ...


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


@dataclass(frozen=True)
class Reachable:
    """Draws among the clients that are there: real ones come late, sleep, and go.

    Attributes:
        population: what is drawn while all clients are there, so that a complete fleet is drawn as a simulation is.
        present: ids of the clients that are there, ascending; waits until enough are.
    """

    population: FixedSize
    present: Callable[[], Sequence[int]]

    def draw(self, seed: int, round: int) -> list[int]:
        """The cohort: of those present as many as there are to be, or all."""
        present = self.present()
        weights = tuple(self.population.weights[i] for i in present) if self.population.weights else ()
        drawn = FixedSize(len(present), min(self.population.size, len(present)), weights).draw(seed, round)
        return [present[i] for i in drawn]

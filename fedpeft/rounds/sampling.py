"""Sampling of the clients that take part in a round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import PrivacyError
from fedpeft.machine import seeds
from fedpeft.privacy.mechanism import CohortForm, Mechanism

FEW = 10_000
"""Largest population of which all clients are asked for the head's start and for evaluations on their own examples."""

MEASURED = 4_000
"""Number of clients asked in a larger population: a good estimate, and as fast as `FEW` clients."""


def select_measured_clients(clients: int, seed: int) -> list[int]:
    """Return the clients to ask for the head's start and for evaluations, ascending.

    In a very large population these are `MEASURED` clients, drawn once.
    """
    if clients <= FEW:
        return list(range(clients))
    return FixedSize(clients, MEASURED).draw(seed, 0)


class Sampler(Protocol):
    """Draws the cohorts."""

    def draw(self, seed: int, round_number: int) -> list[int]:
        """Return the cohort of a round (from 1) as ascending client ids."""
        ...


@dataclass(frozen=True)
class FixedSize:
    """`size` of `clients` clients a round, without replacement.

    Attributes:
        weights: relative chance of each client to be the next one drawn; empty: all equal.
    """

    clients: int
    size: int
    weights: tuple[float, ...] = ()

    def draw(self, seed: int, round_number: int) -> list[int]:
        """Return the cohort of a round (from 1), ascending: a function of seed and round alone."""
        chances = np.array(self.weights) / sum(self.weights) if len(set(self.weights)) > 1 else None
        chosen = seeds.create_generator(seed, "cohort", round_number).choice(
            self.clients, self.size, replace=False, p=chances
        )
        return sorted(int(c) for c in np.asarray(chosen))

    def draw_among(self, present: Sequence[int], seed: int, round_number: int) -> list[int]:
        """Return the cohort out of the clients that are `present`: `size` of them, or all if there are fewer."""
        weights = tuple(self.weights[i] for i in present) if self.weights else ()
        drawn = FixedSize(len(present), min(self.size, len(present)), weights).draw(seed, round_number)
        return [present[i] for i in drawn]


@dataclass(frozen=True)
class _SharedOrder(ABC):
    """`size` of `clients` clients a round, in a public order."""

    clients: int
    size: int

    weights: ClassVar[tuple[float, ...]] = ()

    def draw(self, seed: int, round_number: int) -> list[int]:
        """Return the cohort of a round (from 1), ascending: a function of seed and round alone."""
        return self.draw_among(range(self.clients), seed, round_number)

    @abstractmethod
    def draw_among(self, present: Sequence[int], seed: int, round_number: int) -> list[int]:
        """Return the cohort if only some clients are `present`."""


@dataclass(frozen=True)
class TurnTaking(_SharedOrder):
    """Cohorts out of groups of clients that take turns, always in the same order.

    A client returns after clients // size rounds at the earliest, and later if its group is larger than a cohort.
    """

    def draw_among(self, present: Sequence[int], seed: int, round_number: int) -> list[int]:
        """Return the cohort if only some clients are `present`: those of them whose turn it is."""
        order = seeds.create_generator(seed, "turns").permutation(self.clients)
        groups = np.array_split(order, self.clients // self.size)
        group = [int(c) for c in np.intersect1d(groups[(round_number - 1) % len(groups)], np.asarray(present))]
        chosen = seeds.create_generator(seed, "cohort", round_number).choice(
            len(group), min(self.size, len(group)), replace=False
        )
        return sorted(group[i] for i in np.asarray(chosen)) if group else []


def _get_no_tasks(round_number: int) -> Mapping[int, int]:
    return {}


@dataclass(frozen=True)
class DealtCohorts(_SharedOrder):
    """Cohorts dealt from a deck that is shuffled anew when it has no whole cohort left.

    So all clients take part about equally often. If all are present, none takes part more than rounds / (clients //
    size) times, rounded up. If some are away, others take their places and take part more often; first those who have
    stood in least often.

    Attributes:
        asked: how often each client was asked in the rounds before a given one, from what is on disk, so that a
            restarted server draws the same cohorts.
    """

    asked: Callable[[int], Mapping[int, int]] = _get_no_tasks

    def draw(self, seed: int, round_number: int) -> list[int]:
        """Return the cohort of a round (from 1), ascending: a function of seed and round alone."""
        return sorted(int(c) for c in self._deal_deck(seed, round_number)[: self.size])

    def draw_among(self, present: Sequence[int], seed: int, round_number: int) -> list[int]:
        """Return the cohort if only some clients are `present`.

        Missing clients are replaced by the next ones in the deck, first by those who have stood in least often.
        """
        deck = self._deal_deck(seed, round_number)
        here = deck[np.isin(deck, np.asarray(present))]
        dealt = np.bincount([c for r in range(1, round_number) for c in self.draw(seed, r)], minlength=self.clients)
        asked = self.asked(round_number)
        beyond = np.maximum([asked.get(int(c), 0) - dealt[c] for c in here], 0)
        return sorted(int(c) for c in here[np.argsort(beyond, kind="stable")][: self.size])

    def _deal_deck(self, seed: int, round_number: int) -> NDArray[np.int64]:
        """Return all clients in the order of the deck, from its position before a round."""
        deck, place = divmod(round_number - 1, self.clients // self.size)
        return np.roll(seeds.create_generator(seed, "dealt", deck).permutation(self.clients), -place * self.size)


Population = FixedSize | TurnTaking | DealtCohorts
"""Draws cohorts."""


def create_population(clients: int, size: int, weights: tuple[float, ...], mechanism: Mechanism | None) -> Population:
    """Return what draws a run's cohorts of `size` clients.

    See `TurnTaking` for mechanisms in which clients take turns. `DealtCohorts` serves mechanisms whose cost depends on
    the client that takes part most often.

    Raises:
        PrivacyError: clients take turns, and have different chances of being drawn.
    """
    form = CohortForm.DRAWN if mechanism is None else mechanism.cohort_form
    if mechanism is None or form in (CohortForm.DRAWN, CohortForm.SECRET):
        return FixedSize(clients, size, weights)
    if form is CohortForm.DEALT:
        return FixedSize(clients, size, weights) if weights else DealtCohorts(clients, size)
    if weights:
        raise PrivacyError(
            f"FP7117 under {mechanism.name} all clients take turns equally; leave participation out of the profiles"
        )
    return TurnTaking(clients, size)


@dataclass(frozen=True)
class ReachableClients:
    """Draws among the clients that are present: real ones come late, sleep, and leave.

    Attributes:
        population: draws the cohorts; if all clients are present, it draws as in a simulation.
        present: returns the ids of present clients, ascending; waits until enough are present.
    """

    population: Population
    present: Callable[[], Sequence[int]]

    def draw(self, seed: int, round_number: int) -> list[int]:
        """Return the cohort out of the clients that are present: `size` of them, or all if there are fewer."""
        return self.population.draw_among(self.present(), seed, round_number)

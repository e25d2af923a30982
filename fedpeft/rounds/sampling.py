"""Which clients take part in a round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fedpeft import seeds
from fedpeft.errors import PrivacyError
from fedpeft.privacy.mechanism import CohortForm, Mechanism

FEW = 10_000
"""Up to so many clients all are asked for what concerns all: the head's start, and evaluations on their own rows."""

MEASURED = 4_000
"""So many of more: they say what all do, and asking takes no longer than it does for `FEW`."""


def select_measured_clients(clients: int, seed: int) -> list[int]:
    """Who is asked for what concerns all `clients`, ascending: all of them, or of very many `MEASURED`, drawn once."""
    if clients <= FEW:
        return list(range(clients))
    return FixedSize(clients, MEASURED).draw(seed, 0)


class Sampler(Protocol):
    """Draws the cohorts."""

    def draw(self, seed: int, round_number: int) -> list[int]:
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

    def draw(self, seed: int, round_number: int) -> list[int]:
        """The cohort of a round (from 1), ascending: a function of seed and round alone."""
        chances = np.array(self.weights) / sum(self.weights) if len(set(self.weights)) > 1 else None
        chosen = seeds.create_generator(seed, "cohort", round_number).choice(
            self.clients, self.size, replace=False, p=chances
        )
        return sorted(int(c) for c in np.asarray(chosen))

    def draw_among(self, present: Sequence[int], seed: int, round_number: int) -> list[int]:
        """The cohort where some clients are away: of those present as many as there are to be, or all."""
        weights = tuple(self.weights[i] for i in present) if self.weights else ()
        drawn = FixedSize(len(present), min(self.size, len(present)), weights).draw(seed, round_number)
        return [present[i] for i in drawn]


@dataclass(frozen=True)
class _SharedOrder(ABC):
    """`size` of `clients` clients a round, in an order that everybody may know."""

    clients: int
    size: int

    weights: ClassVar[tuple[float, ...]] = ()

    def draw(self, seed: int, round_number: int) -> list[int]:
        """The cohort of a round (from 1), ascending: a function of seed and round alone."""
        return self.draw_among(range(self.clients), seed, round_number)

    @abstractmethod
    def draw_among(self, present: Sequence[int], seed: int, round_number: int) -> list[int]:
        """The cohort where some clients are away."""


@dataclass(frozen=True)
class TurnTaking(_SharedOrder):
    """Cohorts out of groups of clients that take turns, always in the same order.

    A client comes back after clients // size rounds at the earliest; where its group is larger than a cohort, later.
    """

    def draw_among(self, present: Sequence[int], seed: int, round_number: int) -> list[int]:
        """The cohort where some clients are away: of those present whose turn it is."""
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

    So all clients come about equally often: where all are there, nobody more than rounds / (clients // size) times,
    rounded up. Where some are away others take their places, and come more often; first those who have done so least.

    Attributes:
        asked: how often each client has been asked in the rounds before one, from what is on the disk, so that a server
            that was restarted goes on alike.
    """

    asked: Callable[[int], Mapping[int, int]] = _get_no_tasks

    def draw(self, seed: int, round_number: int) -> list[int]:
        """The cohort of a round (from 1), ascending: a function of seed and round alone."""
        return sorted(int(c) for c in self._deal_deck(seed, round_number)[: self.size])

    def draw_among(self, present: Sequence[int], seed: int, round_number: int) -> list[int]:
        """The cohort where some clients are away: in their place those who come next in the deck, of those who have
        stood in for others least often."""
        deck = self._deal_deck(seed, round_number)
        here = deck[np.isin(deck, np.asarray(present))]
        dealt = np.bincount([c for r in range(1, round_number) for c in self.draw(seed, r)], minlength=self.clients)
        asked = self.asked(round_number)
        beyond = np.maximum([asked.get(int(c), 0) - dealt[c] for c in here], 0)
        return sorted(int(c) for c in here[np.argsort(beyond, kind="stable")][: self.size])

    def _deal_deck(self, seed: int, round_number: int) -> NDArray[np.int64]:
        """All clients in the order of the deck, from where it stands before a round."""
        deck, place = divmod(round_number - 1, self.clients // self.size)
        return np.roll(seeds.create_generator(seed, "dealt", deck).permutation(self.clients), -place * self.size)


Population = FixedSize | TurnTaking | DealtCohorts
"""What cohorts are drawn from."""


def create_population(clients: int, size: int, weights: tuple[float, ...], mechanism: Mechanism | None) -> Population:
    """What a run's cohorts of `size` are drawn from.

    See `TurnTaking` for privacy in which clients take turns, and `DealtCohorts` for budgets that pay for who comes
    most often.

    Raises:
        PrivacyError: clients are to take turns, and have chances of their own.
    """
    form = CohortForm.DRAWN if mechanism is None else mechanism.cohort_form
    if mechanism is None or form in (CohortForm.DRAWN, CohortForm.SECRET):
        return FixedSize(clients, size, weights)
    if form is CohortForm.DEALT:
        return FixedSize(clients, size, weights) if weights else DealtCohorts(clients, size)
    if weights:
        raise PrivacyError(f"FP7117 under {mechanism.name} clients take turns, all alike; leave out participation")
    return TurnTaking(clients, size)


@dataclass(frozen=True)
class ReachableClients:
    """Draws among the clients that are there: real ones come late, sleep, and go.

    Attributes:
        population: what is drawn where all clients are there, so that a complete fleet is drawn as a simulation is.
        present: ids of the clients that are there, ascending; waits until enough are.
    """

    population: Population
    present: Callable[[], Sequence[int]]

    def draw(self, seed: int, round_number: int) -> list[int]:
        """The cohort: of those present as many as there are to be, or all."""
        return self.population.draw_among(self.present(), seed, round_number)

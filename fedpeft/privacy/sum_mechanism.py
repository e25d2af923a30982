"""Mechanisms whose noise is in sums under masks, a share of it from each client."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Self

from fedpeft.peft.adapter import State
from fedpeft.privacy.accountant import Events
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.mechanism import Mechanism

if TYPE_CHECKING:
    from fedpeft.privacy.secure_sum.shared_noise import SharedNoise


class SumMechanism(Mechanism):
    """A mechanism that shows nothing but a noisy sum. Subclasses are frozen dataclasses with these fields.

    Attributes:
        dropouts: share of a cohort that may drop out, from 0, below 0.5; beyond, its sum is void.
        collude: share of a cohort that tells the server its noise, from 0 to 0.9.
        bits: of the integers that are added up.
        mask_neighbours: clients with which each client shares masks and keys, at least 2.
    """

    dropouts: float
    collude: float
    bits: int
    mask_neighbours: int

    @property
    @abstractmethod
    def known(self) -> float:
        """The largest share of the noise that colluding clients know, from 0, below 1."""

    @property
    @abstractmethod
    def public_rows(self) -> int | None:
        """The number of training examples of all clients, as everybody may know it; None: it is not stated."""

    @abstractmethod
    def assume_colluding(self, share: float) -> Self:
        """Return the mechanism with at least this share of clients that tell the server their noise."""

    @abstractmethod
    def check_remote(self) -> None:
        """Reject settings that real clients can't follow.

        Raises:
            PrivacyError: says what is missing.
        """

    @abstractmethod
    def rate(self, exposure: Exposure) -> float:
        """Return the probability with which a unit is in a round that its client is in."""

    @abstractmethod
    def share(self, exposure: Exposure) -> float:
        """Return the probability with which a client is in a round."""

    @abstractmethod
    def most(self, exposure: Exposure) -> int:
        """Return the number of clients that a cohort hardly exceeds."""

    @abstractmethod
    def sums(self) -> SharedNoise:
        """Return how sums are formed, before it is known how much noise they need."""

    @abstractmethod
    def sums_of(self, exposure: Exposure, noise: float, start: float | None) -> SharedNoise:
        """Return how sums are formed, with the noise in them.

        Args:
            exposure: the run.
            noise: noise multiplier of the rounds.
            start: noise multiplier of the sum before round 1; None: there is none.
        """

    @abstractmethod
    def start_summand(self, statistics: State) -> State:
        """Return what a client adds of its statistics to the sum before round 1."""

    @abstractmethod
    def to_all(self, exposure: Exposure, noise: float, start: float | None, starts: int, rounds: int) -> Events:
        """Return what so many starts and rounds have told those who see the released models alone."""

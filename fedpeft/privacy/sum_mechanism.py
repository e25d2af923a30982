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
    """A mechanism that releases nothing but a noisy sum. Subclasses are frozen dataclasses with these fields.

    Attributes:
        dropouts: share of a cohort that may drop out, from 0, below 0.5; with more dropouts its sum is void.
        collude: share of a cohort that reveals its noise to the server, from 0 to 0.9.
        bits: bits of the integers that are added up.
        mask_neighbours: number of clients with which each client shares masks and keys, at least 2.
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
        """The public number of training examples of all clients; None: it is not stated."""

    @abstractmethod
    def assume_colluding(self, share: float) -> Self:
        """Return the mechanism with at least this share of clients that reveal their noise to the server."""

    @abstractmethod
    def check_remote(self) -> None:
        """Reject settings that real clients can't follow.

        Raises:
            PrivacyError: the message names what is missing.
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
        """Return how sums are formed, before the noise that they need is known."""

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
        """Return the releases to those who see only the released models.

        Args:
            exposure: the run.
            noise: noise multiplier of the rounds.
            start: noise multiplier of the sum before round 1; None: there is none.
            starts: number of sums before round 1.
            rounds: number of rounds.
        """

"""Optional abilities of privacy mechanisms, beside accounting.

Code asks for an ability, never for a mechanism's name. Two more abilities have modules of their own:
`fedpeft.privacy.sum_mechanism` shares noise in sums under masks, and `fedpeft.privacy.training_plans` plans how clients
train.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from fedpeft.aggregation.aggregator import Aggregator
from fedpeft.aggregation.server_optimizer import ServerOptimizer
from fedpeft.aggregation.strategy import Strategy
from fedpeft.peft.adapter import Layout, State
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.noise import RunKey

if TYPE_CHECKING:
    from fedpeft.privacy.mechanism import Mechanism


@dataclass(frozen=True)
class ServerRound:
    """A round at the server, for a mechanism that aggregates: its parts and the source of its randomness."""

    strategy: Strategy
    optimizer: ServerOptimizer
    layout: Layout
    state: State
    round: int
    attempt: int
    key: RunKey
    noise: float
    clip: float


@runtime_checkable
class AddsServerNoise(Protocol):
    """A mechanism whose server clips updates and adds the noise."""

    def aggregator(self, at: ServerRound, exposure: Exposure) -> Aggregator:
        """Return what takes the updates of a round instead of the strategy's own aggregator."""


@runtime_checkable
class RelatesNoise(Protocol):
    """A mechanism whose server noise depends on the noise of earlier rounds."""

    def noise_factor(self, exposure: Exposure) -> np.ndarray | None:
        """Return the matrix F that relates the noise of rounds (`fedpeft.privacy.server_noise`), (rounds, rounds).

        None: the noise of each round is independent.
        """


@runtime_checkable
class ProtectsUpdates(Protocol):
    """A mechanism whose clients clip and noise their whole updates before they send them."""

    def protect_update(self, update: State, noise: float, key: RunKey, ids: tuple[int, ...]) -> State:
        """Return what a client sends instead of its update; `ids` are round, attempt and client."""


@runtime_checkable
class WhitensFeatures(Protocol):
    """A mechanism that can clip and sum gradients in the coordinates of a head on whitened features."""

    @property
    def whitens(self) -> bool:
        """Whether the settings ask for whitening."""

    @property
    def plans_whitening(self) -> bool:
        """Whether plans ask for whitening if the start reports how features vary."""


def is_whitened(mechanism: Mechanism | None) -> bool:
    """Return whether gradients are clipped as those of a head on whitened features."""
    return isinstance(mechanism, WhitensFeatures) and mechanism.whitens


def can_plan_whitening(mechanism: Mechanism | None) -> bool:
    """Return whether plans whiten features if the start reports how they vary."""
    return isinstance(mechanism, WhitensFeatures) and mechanism.plans_whitening

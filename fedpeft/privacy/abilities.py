"""What some mechanisms can do beside accounting. Code asks for an ability, never for the mechanism's name.

`fedpeft.privacy.sum_mechanism` has the ability to share noise in sums under masks, `fedpeft.privacy.training_plans` the
ability to plan how clients train.
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
    """A round at the server, for a mechanism that aggregates: the parts, and what its randomness comes from."""

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
    """The server clips updates and adds the noise."""

    def aggregator(self, at: ServerRound, exposure: Exposure) -> Aggregator:
        """Return what takes the updates of a round instead of the strategy's own aggregator."""


@runtime_checkable
class RelatesNoise(Protocol):
    """The noise of a round at the server depends on that of earlier rounds."""

    def noise_factor(self, exposure: Exposure) -> np.ndarray | None:
        """Return what relates the noise of rounds (`fedpeft.privacy.server_noise`), (rounds, rounds); None: nothing."""


@runtime_checkable
class ProtectsUpdates(Protocol):
    """A client clips and noises its whole update before it hands it in."""

    def protect_update(self, update: State, noise: float, key: RunKey, ids: tuple[int, ...]) -> State:
        """Return what a client hands in instead of its update; `ids` are round, attempt and client."""


@runtime_checkable
class WhitensFeatures(Protocol):
    """Gradients can be clipped, and summed, as those of a head on whitened features."""

    @property
    def whitens(self) -> bool:
        """Whether the settings ask for it."""

    @property
    def plans_whitening(self) -> bool:
        """Whether plans ask for it if the start tells how features vary."""


def is_whitened(mechanism: Mechanism | None) -> bool:
    """Return whether gradients are clipped as those of a head on whitened features."""
    return isinstance(mechanism, WhitensFeatures) and mechanism.whitens


def can_plan_whitening(mechanism: Mechanism | None) -> bool:
    """Return whether plans whiten features if the start tells how they vary."""
    return isinstance(mechanism, WhitensFeatures) and mechanism.plans_whitening

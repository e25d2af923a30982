"""What a privacy mechanism is: what it protects, where it clips and adds noise, and what that costs.

The order in a round is law:

    client clip -> client noise -> encode -> wire -> decode -> server clip -> sum -> server noise -> / (q N)
        -> the strategy's post-processing -> server optimizer

A mechanism acts at some of these places. What follows its noise is post-processing and free; what precedes its clipping
may be anything. It says what each round costs; the ledger (`fedpeft.privacy.ledger`) keeps the accounts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.aggregation.aggregator import Collector
from fedpeft.aggregation.server_optimizer import ServerOptimizer
from fedpeft.aggregation.strategy import Strategy
from fedpeft.errors import PrivacyError
from fedpeft.parts import Family, name_of, setting
from fedpeft.peft.adapter import Layout, State
from fedpeft.peft.method import PeftMethod
from fedpeft.privacy.accountant import Event, noise_for, rdp_epsilon, within
from fedpeft.privacy.ledger import Charges
from fedpeft.privacy.noise import RunKey


@dataclass(frozen=True)
class Federation:
    """What the cost of a run depends on; none of it is learned from the data's content.

    Attributes:
        strategy, method, layout: the parts.
        rows: training rows of each client, (clients,).
        steps: local steps of each client in a round, (clients,).
        participations: rounds that each client is planned to take part in, (clients,).
        batch_size: expected rows of a local step.
        rounds: planned.
        cohort: expected number of clients in a round.
        even: whether all clients have the same chance of being drawn.
    """

    strategy: Strategy
    method: PeftMethod
    layout: Layout
    rows: np.ndarray
    steps: np.ndarray
    participations: np.ndarray
    batch_size: int
    rounds: int
    cohort: int
    even: bool

    @property
    def clients(self) -> int:
        """How many there are."""
        return len(self.rows)


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


@dataclass(frozen=True)
class Mechanism(ABC):
    """One mechanism. Subclasses are frozen dataclasses."""

    epsilon: float | None = setting(None, "the budget; without noise_multiplier, noise is chosen to meet it", above=0)
    noise_multiplier: float | None = setting(None, "standard deviation of the noise, relative to sensitivity", low=0)
    clip: float = setting(1.0, "largest norm of what one unit contributes", above=0)
    dp_delta: float | None = setting(None, "delta; none: a tenth of its limit, 1 / (number of units)", above=0, below=1)
    raw_metrics: bool = setting(False, "let clients report losses and numbers of rows, which epsilon does not cover")
    at_budget: str = setting(
        "end", "when a client's epsilon is spent: end the run, or sit_out: go on without it", choices=("end", "sit_out")
    )
    audit: bool = setting(False, "attack the finished run: canaries and membership inference, see fedpeft.audit")
    test_noise: bool = setting(False, "for tests: noise from the run's seed, protecting nobody; stamped on the results")

    unit: ClassVar[str]
    """Whose presence is hidden: "training row" or "client"."""

    neighbours: ClassVar[str]
    """The neighbouring relation, in words."""

    sampling: ClassVar[str]
    """What epsilon assumes of sampling, in words."""

    protects: ClassVar[bool] = True
    """False for the reference without protection."""

    per_example: ClassVar[bool] = False
    """Whether local training clips the gradient of every row (then the executor is the sequential one)."""

    secret_cohort: ClassVar[bool] = False
    """Whether clients are Poisson-sampled by the run's secret, and the cohort may be empty."""

    noises_updates: ClassVar[bool] = True
    """Whether what leaves a client is private already, so that whatever the server does is post-processing."""

    def check(self, federation: Federation) -> None:
        """Refuse what would not protect.

        Raises:
            PrivacyError: why, and what to do.
        """
        name = self.name
        if self.epsilon is None and self.noise_multiplier is None:
            raise PrivacyError(f"{name} needs epsilon or noise_multiplier, such as {name}(epsilon=8, clip={self.clip})")
        limit = 1 / self.units(federation)
        if self.dp_delta is not None and self.dp_delta >= limit:
            raise PrivacyError(
                f"dp_delta={self.dp_delta:g} allows publishing one {self.unit} outright; it must be below 1 / (largest "
                f"number of {self.unit}s) = {limit:.3g}, leave it out for a tenth of that"
            )

    @property
    def silent(self) -> bool:
        """Whether clients keep to themselves what they measure on their rows: losses, numbers of rows, accuracies."""
        return self.protects and not self.raw_metrics

    @property
    def name(self) -> str:
        """As on the command line."""
        return name_of(type(self))

    def delta(self, federation: Federation) -> float:
        """The delta that epsilon is stated at."""
        return self.dp_delta if self.dp_delta is not None else 0.1 / self.units(federation)

    @abstractmethod
    def units(self, federation: Federation) -> int:
        """The number of units that delta must be small against."""

    @abstractmethod
    def planned(self, federation: Federation) -> list[tuple[float, int]]:
        """The planned (sampling rate, releases) of every account over the whole run, without repetition."""

    @abstractmethod
    def charges(self, federation: Federation, cohort: Sequence[int], noise: float) -> Charges:
        """What a round with this cohort costs."""

    def noise(self, federation: Federation) -> float:
        """The noise multiplier: as given, or the smallest that keeps every account within epsilon as planned."""
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        assert self.epsilon is not None
        delta, noise = self.delta(federation), 0.0
        plans = self.planned(federation)
        for rate, count in sorted(plans, key=lambda p: -rdp_epsilon({Event(1.0, p[0]): p[1]}, delta)):
            if noise == 0 or not within({Event(noise, rate): count}, delta, self.epsilon):
                noise = max(noise, noise_for(self.epsilon, delta, rate, count))
        return noise

    def row_rate(self, batch_size: int, rows: int) -> float:
        """The probability with which each of a client's `rows` rows joins a local step of about `batch_size`."""
        return min(1.0, batch_size / rows)

    def released(self, update: State, noise: float, key: RunKey, ids: tuple[int, ...]) -> State:
        """What a client hands in instead of its update; by default the update."""
        return update

    def collector(self, at: ServerRound, federation: Federation) -> Collector | None:
        """What takes a round's updates at the server, where the mechanism acts there; None: the strategy's own."""
        return None


MECHANISMS: Family[Mechanism] = Family("fedpeft.privacy.mechanisms", "privacy mechanism", kind=Mechanism)
"""All mechanisms, by file name."""

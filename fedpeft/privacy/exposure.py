"""The facts of a run that its privacy cost depends on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.aggregation.strategy import Strategy
from fedpeft.aggregation.whitening import BIAS, WEIGHT
from fedpeft.peft.adapter import Layout

if TYPE_CHECKING:
    from fedpeft.peft.method import PeftMethod


@dataclass(frozen=True)
class Exposure:
    """The facts that the cost of a run depends on; none of them is learned from the content of the data.

    Attributes:
        strategy: the strategy.
        method: the PEFT method.
        layout: the tensors of the adapter.
        rows: number of examples of each client, (clients,).
        steps: local steps of each client in a round, (clients,).
        participations: rounds that each client is planned to take part in, (clients,).
        batch_size: expected number of examples in a local step.
        rounds: planned rounds.
        cohort: expected number of clients in a round.
        even: whether all clients have the same chance of being drawn.
        start: whether the head starts from a noisy release of every client's statistics, before round 1.
        start_entries: size of this release, without the entry that reports its noise.
        trained: fewest and most entries that a round trains.
        length: norm of the features that the head reads, relative to the norm that plans were made for.
        whitened: number of whitened feature directions, which alone update the head; 0: features are not whitened.
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
    start: bool = False
    start_entries: int = 0
    trained: tuple[int, int] = (1, 1)
    length: float = 1.0
    whitened: int = 0

    @property
    def clients(self) -> int:
        """The number of clients."""
        return len(self.rows)

    @property
    def head_alone(self) -> bool:
        """Whether nothing but the head is trained."""
        return self.trained[1] == sum(t.numel for t in self.layout.tensors if t.role == "head")

    @property
    def noised_entries(self) -> int:
        """The most entries in which the noise of a round counts; a whitened head ignores the noise in other entries."""
        if self.whitened:
            return self.layout.shapes["head.weight"][0] * (self.whitened + 1)
        return self.trained[1]

    def asking_all(self) -> Exposure:
        """Return a copy in which every round asks all clients."""
        everyone = np.full(self.clients, self.rounds)
        return replace(self, cohort=self.clients, participations=everyone)


def trains_head_alone(strategy: Strategy, layout: Layout) -> bool:
    """Return whether each round trains the whole head and nothing else."""
    return all(strategy.list_trained(layout, round_number) == {WEIGHT, BIAS} for round_number in range(1, 5))

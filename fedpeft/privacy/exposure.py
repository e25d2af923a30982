"""What the cost of a private run depends on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedpeft.aggregation.strategy import Strategy
from fedpeft.aggregation.whitening import BIAS, WEIGHT
from fedpeft.peft.adapter import Layout
from fedpeft.peft.method import PeftMethod


@dataclass(frozen=True)
class Exposure:
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
        start: whether the head starts from a noisy release of every client's rows, before round 1.
        start_entries: numbers that this release has, without those that tell of its noise.
        trained: entries that are trained in a round, the fewest and the most.
        length: of the features that the head reads, in units of what plans were made for.
        whitened: directions in which features are whitened, and alone lead the head; 0: they are as they are.
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
        """How many there are."""
        return len(self.rows)

    @property
    def head_alone(self) -> bool:
        """Whether nothing but the head is trained."""
        return self.trained[1] == sum(t.numel for t in self.layout.tensors if t.role == "head")

    @property
    def noised_entries(self) -> int:
        """Entries that the noise of a round counts in at most; that in others of a whitened head is left out."""
        if self.whitened:
            return self.layout.shapes["head.weight"][0] * (self.whitened + 1)
        return self.trained[1]

    def asking_all(self) -> Exposure:
        """The same with all clients in each round."""
        everyone = np.full(self.clients, self.rounds)
        return replace(self, cohort=self.clients, participations=everyone)


def trains_head_alone(strategy: Strategy, layout: Layout) -> bool:
    """Whether each round trains a head, all of it, and nothing else."""
    return all(strategy.list_trained(layout, round_number) == {WEIGHT, BIAS} for round_number in range(1, 5))

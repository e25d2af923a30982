"""How a client trains between receiving and sending: how much, with which optimizer, and the rate over the rounds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from fedpeft.clients.local_optimizer import LOCAL_OPTIMIZERS, LocalOptimizer
from fedpeft.clients.local_work import LOCAL_WORK, LocalWork


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains in a round.

    Attributes:
        batch_size: rows per step, at least 1.
        work: how many steps.
        learning_rate: of the optimizer, above 0.
        optimizer: what steps.
    """

    batch_size: int = 8
    work: LocalWork = field(default_factory=lambda: LOCAL_WORK.build("epochs"))
    learning_rate: float = 1e-3
    optimizer: LocalOptimizer = field(default_factory=lambda: LOCAL_OPTIMIZERS.build("adamw"))

    @property
    def walks(self) -> bool:
        """Whether a client has to know how many steps it has made before."""
        return self.work.walks

    def steps_for(self, rows: int) -> int:
        """Local steps of a round on a shard of `rows` rows."""
        return self.work.steps_for(rows, self.batch_size)

    def pieces(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows of a step (n,), pass by pass."""
        size = self.optimizer.rows_per_pass or len(rows)
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def of_steps(self, count: int) -> LocalTraining:
        """The same, with `count` steps."""
        return replace(self, work=LOCAL_WORK.build(f"steps(count={count}, walk={self.work.walks_by_steps})"))

    def passes(self, count: float) -> LocalTraining:
        """The same, with `count` passes over the rows."""
        return replace(self, work=LOCAL_WORK.build(f"epochs({count})"))


@dataclass(frozen=True)
class Schedule:
    """The clients' learning rate over the rounds: constant, or falling to 0 linearly or as a cosine."""

    learning_rate: float
    rounds: int
    shape: str

    def at(self, round: int) -> float:
        """The learning rate of `round`, from 1."""
        progress = (round - 1) / self.rounds
        if self.shape == "linear":
            return self.learning_rate * (1 - progress)
        if self.shape == "cosine":
            return self.learning_rate * (1 + float(torch.cos(torch.tensor(progress * torch.pi)))) / 2
        return self.learning_rate

"""A client's training between receiving and sending: local work, optimizer, and the learning rate over the rounds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from fedpeft.clients.local_optimizer import LocalOptimizer
from fedpeft.clients.local_work import LocalWork, WalksExamples

from fedpeft.errors import ConfigError
from fedpeft.parts import format_part
from fedpeft.parts.families import LOCAL_OPTIMIZERS, LOCAL_WORK


@dataclass(frozen=True)
class LocalTraining:
    """A client's training in a round.

    Attributes:
        batch_size: examples per step, at least 1.
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
        """Whether a client must remember how many steps it has made."""
        return isinstance(self.work, WalksExamples) and self.work.continues_walk()

    def steps_for(self, rows: int) -> int:
        """Return the local steps of a round on a shard of `rows` examples.

        Raises:
            ConfigError: the local work sets fewer steps than it may.
        """
        steps = self.work.steps_for(rows, self.batch_size)
        if rows and steps < self.work.least:
            raise ConfigError(
                f"FP1009 {format_part(self.work)} plans {steps} steps on {rows} examples; a client's round must "
                "have at least 1 step"
            )
        return steps

    def split_into_passes(self, rows: np.ndarray) -> list[np.ndarray]:
        """Split the examples of a step (n,) into passes."""
        size = self.optimizer.rows_per_pass or len(rows)
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def replace_steps(self, count: int) -> LocalTraining:
        """Return the same training with `count` steps; 0: as it is."""
        if not count:
            return self
        walk = self.work.continues_walk() if isinstance(self.work, WalksExamples) else True
        return replace(self, work=LOCAL_WORK.build(f"steps(count={count}, walk={walk})"))

    def set_passes(self, count: float) -> LocalTraining:
        """Return the same training with `count` passes over the examples."""
        return replace(self, work=LOCAL_WORK.build(f"epochs({count})"))


@dataclass(frozen=True)
class Schedule:
    """The clients' learning rate over the rounds: constant, or falling linearly or as a cosine to a floor.

    Attributes:
        learning_rate: the highest, above 0.
        rounds: number of rounds of the run, at least 1.
        shape: `constant`, `linear`, `cosine` or `annealing`. Annealing is SGDR's equation 5 without restarts
            (Loshchilov and Hutter, arXiv 1608.03983) at t = round, as FlowerTune has it. The others begin at t = 0, and
            reach the floor after the last round.
        floor: the lowest rate, as a share of the highest, 0 to 1.
        repeats: whether it begins anew every `rounds` rounds, for each task of a sequence.
    """

    learning_rate: float
    rounds: int
    shape: str
    floor: float = 0.0
    repeats: bool = False

    def get_rate(self, round_number: int) -> float:
        """Return the learning rate of `round_number`, from 1."""
        if self.shape == "constant":
            return self.learning_rate
        round_number = (round_number - 1) % self.rounds + 1 if self.repeats else round_number
        progress = (round_number if self.shape == "annealing" else round_number - 1) / self.rounds
        share = 1 - progress
        if self.shape != "linear":
            share = (1 + float(torch.cos(torch.tensor(progress * torch.pi)))) / 2
        return self.learning_rate * (self.floor + (1 - self.floor) * share)

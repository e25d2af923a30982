"""How a client trains between receiving and sending: passes or steps, optimizer, and the rate over the rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from fedpeft.parts import setting

LocalOptimizer = tuple[torch.optim.Optimizer, LambdaLR]
"""An optimizer and what moves its learning rate after each step."""


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains in a round."""

    batch_size: int = setting(8, "rows per step", low=1)
    epochs: float = setting(1.0, "passes over the client's rows; a fraction trains on a part", above=0)
    steps: int = setting(0, "optimizer steps; 0: as many as `epochs` needs", low=0)
    walk: bool = setting(
        True, "with `steps`: each round continues where the client's last one stopped, and all rows have their turn"
    )
    learning_rate: float = setting(1e-3, "of AdamW or SGD", above=0)
    head_rate: float = setting(1.0, "learning rate of the head, relative to the adapter's", low=0)
    weight_decay: float = setting(0.0, "decoupled, of AdamW", low=0)
    optimizer: str = setting("adamw", "local optimizer", choices=("adamw", "sgd"))
    warmup: int = setting(
        0,
        "steps over which a round's learning rate rises: the optimizer starts anew, and AdamW's first steps are blind",
        low=0,
    )
    max_norm: float = setting(0.0, "clip the gradient of a step to this norm; 0: no clipping", low=0)
    rows_per_pass: int = setting(0, "of a step, with their gradients added up: less memory; 0: all in one pass", low=0)
    checkpointing: bool = setting(False, "blocks are computed again on the way back: less memory, a third more time")

    def rate(self, name: str, learning_rate: float) -> float:
        """The learning rate of one tensor."""
        return learning_rate * self.head_rate if name.startswith("head.") else learning_rate

    @property
    def walks(self) -> bool:
        """Whether a client has to know how many steps it has made before."""
        return self.walk and self.steps > 0

    def steps_for(self, rows: int) -> int:
        """Local steps of a round on a shard of `rows` rows."""
        return self.steps or max(1, round(self.epochs * -(-rows // self.batch_size)))

    def passes(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows of a step (n,), pass by pass."""
        size = self.rows_per_pass or len(rows)
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def full_steps(self, steps: int) -> float:
        """How many steps at the full rate a round's first `steps` are worth: less than that under warm-up."""
        return sum(self._share(step) for step in range(steps))

    def _share(self, step: int) -> float:
        """Of the learning rate that a step, from 0, is taken with."""
        return min(1.0, (step + 1) / (self.warmup + 1))

    def optimizer_for(self, parameters: Mapping[str, nn.Parameter], learning_rate: float) -> LocalOptimizer:
        """A new optimizer over parameters by canonical name, and its warm-up; their state ends with the round."""
        optimizer = self._optimizer(parameters, learning_rate)
        return optimizer, LambdaLR(optimizer, self._share)

    def _optimizer(self, parameters: Mapping[str, nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        head = [p for name, p in parameters.items() if name.startswith("head.")]
        adapter = [p for name, p in parameters.items() if not name.startswith("head.")]
        groups = [
            {"params": group, "lr": rate}
            for group, rate in ((adapter, learning_rate), (head, learning_rate * self.head_rate))
            if group
        ]
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups)
        return torch.optim.AdamW(groups, weight_decay=self.weight_decay, fused=True)


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

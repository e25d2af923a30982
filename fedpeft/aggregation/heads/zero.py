"""A head of zeros: nothing is exchanged."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregation.head_start import HeadStart
from fedpeft.peft.adapter import State


@dataclass(frozen=True)
class Zero(HeadStart):
    """All classes are equally likely at first."""

    exchanges: ClassVar[bool] = False

    def fit_to_targets(self, targets: str) -> HeadStart:
        """Return this head: zeros suit all labels, as the mean or as a probability of one half."""
        return self

    def shapes(self, width: int, classes: int, rows: int) -> dict[str, tuple[int, ...]]:
        """Return no shapes."""
        return {}

    def statistics(self, features: Tensor, labels: Tensor, classes: int) -> State:
        """Return no statistics."""
        return {}

    def solve(self, total: State, width: int, classes: int) -> State:
        """Return zeros."""
        zeros = {"head.weight": torch.zeros(classes, width), "head.bias": torch.zeros(classes)}
        return {name: t.double() for name, t in zeros.items()}


part = Zero

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

    def fitted(self, targets: str) -> HeadStart:
        """Zeros are right for any labels: the mean, or a probability of one half."""
        return self

    def shapes(self, width: int, classes: int, rows: int) -> dict[str, tuple[int, ...]]:
        """None."""
        return {}

    def statistics(self, features: Tensor, labels: Tensor, classes: int) -> State:
        """None."""
        return {}

    def class_counts(self, total: State) -> Tensor:
        """None are known."""
        return torch.zeros(0)

    def solve(self, total: State, width: int, classes: int) -> State:
        """Zeros."""
        zeros = {"head.weight": torch.zeros(classes, width), "head.bias": torch.zeros(classes)}
        return {name: t.double() for name, t in zeros.items()}


part = Zero

"""Directions of noisy class sums as a linear head: one Gaussian release before round 1, and a good start.

With phi = x / |x| and S_y = sum of phi over the rows of class y, over all clients, with their noise:

    logit_y = scale * <S_y / |S_y|, x> / (typical |x|)

A row adds phi to one of the sums and a little to what is told of lengths (`fedpeft.aggregation.bounded_rows`): together
at most 1 in norm, which is all that noise has to hide. Numbers of rows are not asked for: a direction needs none. A
class whose sum drowns in the noise has no direction, and loses against all that have one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpeft.aggregation.bounded_rows import (
    LENGTH_BOUND,
    compute_length_sums,
    compute_typical_length,
    find_hidden_classes,
    normalize_rows,
)
from fedpeft.aggregation.head_start import VARIANCE, HeadStart
from fedpeft.parts import setting
from fedpeft.peft.adapter import State


@dataclass(frozen=True)
class PrivateCentroids(HeadStart):
    """The directions of the classes, from bounded rows."""

    scale: float = setting(16.0, "factor from cosines to logits", above=0)

    bounded: ClassVar[bool] = True

    def shapes(self, width: int, classes: int, rows: int) -> dict[str, tuple[int, ...]]:
        """Class sums of the directions, two numbers on lengths, and the variance of the noise."""
        return {"sums": (classes, width), "lengths": (2,), VARIANCE: (1,)}

    def statistics(self, features: Tensor, labels: Tensor, classes: int) -> State:
        """Sums over the client's rows, without noise; a row adds at most 1 in norm."""
        y = F.one_hot(labels, classes).double()
        bound = (1 + LENGTH_BOUND) ** 0.5
        found = {"sums": y.T @ normalize_rows(features) / bound, "lengths": compute_length_sums(features) / bound}
        return {**found, VARIANCE: torch.zeros(1, dtype=torch.float64)}

    def class_counts(self, total: State) -> Tensor:
        """None are known."""
        return torch.zeros(0)

    def hidden(self, total: State) -> list[int]:
        """Classes whose sums drown in the noise."""
        found = find_hidden_classes(total["sums"].double(), float(total[VARIANCE]))
        return [int(label) for label in torch.nonzero(found)[:, 0]]

    def solve(self, total: State, width: int, classes: int) -> State:
        """The head; a hidden class has weights of zero, and a bias that no other logit falls below."""
        sums = total["sums"].double()
        hidden = torch.zeros(classes, dtype=torch.bool)
        hidden[self.hidden(total)] = True
        weight = self.scale * F.normalize(sums * ~hidden[:, None], dim=1) / compute_typical_length(total["lengths"])
        return {"head.weight": weight, "head.bias": -self.scale * hidden.double()}


part = PrivateCentroids

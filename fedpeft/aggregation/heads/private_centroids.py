"""Directions of noisy class sums as a linear head: one Gaussian release before round 1, and a good start.

With phi = x / |x| and S_y = sum of phi over the examples of class y of all clients, with their noise:

    logit_y = scale * <S_y / |S_y|, x> / (typical |x|)

An example adds phi to one of the sums and a little to the sums of lengths (`fedpeft.aggregation.bounded_rows`).
Together this is at most 1 in norm, which the noise has to hide. Counts are not needed for directions. A class whose sum
is smaller than the noise has no direction and loses against all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

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
    """The directions of the classes, from bounded features."""

    scale: float = setting(16.0, "factor from cosines to logits", above=0)

    bounded: ClassVar[bool] = True

    def shapes(self, width: int, classes: int, rows: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the class sums, the two sums of lengths, and the variance of the noise."""
        return {"sums": (classes, width), "lengths": (2,), VARIANCE: (1,)}

    def statistics(self, features: Tensor, labels: Tensor, classes: int) -> State:
        """Sum over the client's examples, without noise; an example adds at most 1 in norm."""
        y = functional.one_hot(labels, classes).double()
        bound = (1 + LENGTH_BOUND) ** 0.5
        found = {"sums": y.T @ normalize_rows(features) / bound, "lengths": compute_length_sums(features) / bound}
        return {**found, VARIANCE: torch.zeros(1, dtype=torch.float64)}

    def find_hidden_classes(self, total: State) -> list[int]:
        """Return the classes whose sums are no longer than the noise."""
        found = find_hidden_classes(total["sums"].double(), float(total[VARIANCE]))
        return [int(label) for label in torch.nonzero(found)[:, 0]]

    def solve(self, total: State, width: int, classes: int) -> State:
        """Compute the head; a hidden class has zero weights and a bias below all other logits."""
        sums = total["sums"].double()
        hidden = torch.zeros(classes, dtype=torch.bool)
        hidden[self.find_hidden_classes(total)] = True
        weight = (
            self.scale * functional.normalize(sums * ~hidden[:, None], dim=1) / compute_typical_length(total["lengths"])
        )
        return {"head.weight": weight, "head.bias": -self.scale * hidden.double()}


part = PrivateCentroids

"""Nearest class mean as a linear head (FedNCM, arXiv 2306.03937): one mean feature per class, a tenth of ridge's bytes.

With c_y the mean feature of class y minus that of all examples, m, normalized to length one:

    logit_y = scale * c_y . (x - m) / mean |x|
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from fedpeft.aggregation.head_start import HeadStart
from fedpeft.parts import setting
from fedpeft.peft.adapter import State


@dataclass(frozen=True)
class Centroids(HeadStart):
    """The centered mean features of the classes."""

    scale: float = setting(8.0, "factor from cosines to logits", above=0)

    def shapes(self, width: int, classes: int, rows: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the class sums, the examples per class, and the summed length of the features."""
        return {"sums": (classes, width), "counts": (classes,), "length": (1,)}

    def statistics(self, features: Tensor, labels: Tensor, classes: int) -> State:
        """Sum over the client's examples."""
        y = functional.one_hot(labels, classes).double()
        return {
            "sums": (y.T @ features.double()).to(features.dtype),
            "counts": y.sum(0).to(features.dtype),
            "length": features.double().norm(dim=1).sum()[None].to(features.dtype),
        }

    def class_counts(self, total: State) -> Tensor:
        """Return the summed counts."""
        return total["counts"]

    def solve(self, total: State, width: int, classes: int) -> State:
        """Compute the head, with zeros for classes that no client has."""
        counts = total["counts"].double()
        means = total["sums"].double() / counts.clamp(min=1)[:, None]
        center = total["sums"].double().sum(0) / counts.sum()
        length = total["length"].double() / counts.sum()
        directions = functional.normalize((means - center) * (counts > 0)[:, None], dim=1)
        weight = self.scale * directions / length
        return {"head.weight": weight, "head.bias": -weight @ center}


part = Centroids

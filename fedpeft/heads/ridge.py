"""Ridge regression from features to one-hot labels, in closed form (the idea of Fed3R, arXiv 2402.01349).

With x the feature and a constant 1, y the one-hot label:

    W = scale * (sum x x^T + strength * n/d * I)^-1 (sum x y^T)

Both sums run over all rows of all clients, so the head is that of the pooled data, exactly. `scale` turns regression
values (between 0 and 1) into logits whose softmax is neither flat nor saturated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpeft.adapter import State
from fedpeft.head_start import HeadStart
from fedpeft.parts import setting


@dataclass(frozen=True)
class Ridge(HeadStart):
    """The regression head of the frozen features."""

    strength: float = setting(1e-3, "regularisation, in units of the mean squared feature", above=0)
    scale: float = setting(8.0, "factor from regression values to logits", above=0)

    def shapes(self, width: int, classes: int) -> dict[str, tuple[int, ...]]:
        """The upper triangle of the features' second moments, and the class sums."""
        return {"moments": ((width + 1) * (width + 2) // 2,), "sums": (width + 1, classes)}

    def statistics(self, features: Tensor, labels: Tensor, classes: int) -> State:
        """Sums over the client's rows, in the precision of the features."""
        x = F.pad(features.double(), (0, 1), value=1.0)
        y = F.one_hot(labels, classes).double()
        row, column = torch.triu_indices(x.shape[1], x.shape[1])
        moments = (x.T @ x)[row, column]
        return {"moments": moments.to(features.dtype), "sums": (x.T @ y).to(features.dtype)}

    def solve(self, total: State, width: int, classes: int) -> State:
        """The head."""
        size = width + 1
        upper = torch.zeros(size, size, dtype=torch.float64)
        row, column = torch.triu_indices(size, size)
        upper[row, column] = total["moments"].double()
        moments = upper + upper.triu(1).T
        penalty = self.strength * moments.diagonal()[:-1].mean()
        penalties = torch.full((size,), float(penalty), dtype=torch.float64)
        penalties[-1] = 0.0  # the constant is not shrunk
        weights = self.scale * torch.linalg.solve(moments + penalties.diag(), total["sums"].double())
        return {"head.weight": weights[:-1].T.contiguous(), "head.bias": weights[-1].clone()}


part = Ridge

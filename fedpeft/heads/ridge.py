"""Ridge regression from features to one-hot labels, in closed form (the idea of Fed3R, arXiv 2402.01349).

With x the feature and a constant 1, y the one-hot label:

    W = scale * (sum x x^T + strength * n/d * I)^-1 (sum x y^T)

Both sums run over all rows of all clients, so the head is that of the pooled data, exactly. `scale` turns regression
values (between 0 and 1) into logits whose softmax is neither flat nor saturated.

The inverse amplifies errors in the directions where features vary little, so moments can't be sent coarsely. Their
factor can: X = Q R, sum x x^T = R^T R, where an error in R is weighed by R itself, so that small directions get small
errors. It also has no more rows than the client has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

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
    send: str = setting("moments", "what clients send: moments, or their factor", choices=("moments", "factor"))

    codec: ClassVar[str] = "quantize(bits=6, rounding=dither) | rans"

    def compact(self) -> HeadStart:
        """With factors instead of moments."""
        return replace(self, send="factor")

    def shapes(self, width: int, classes: int) -> dict[str, tuple[int, ...]]:
        """The upper triangle of the features' second moments, or their factor; and the class sums."""
        sums = {"sums": (width + 1, classes)}
        if self.send == "factor":
            return {"factor": (width + 1, width + 1), **sums}
        return {"moments": ((width + 1) * (width + 2) // 2,), **sums}

    def statistics(self, features: Tensor, labels: Tensor, classes: int) -> State:
        """Sums over the client's rows, in the precision of the features."""
        x = F.pad(features.double(), (0, 1), value=1.0)
        y = F.one_hot(labels, classes).double()
        sums = (x.T @ y).to(features.dtype)
        if self.send == "factor":
            R = torch.linalg.qr(x, mode="r").R  # (min(n, width + 1), width + 1)
            return {"factor": F.pad(R, (0, 0, 0, x.shape[1] - len(R))).to(features.dtype), "sums": sums}
        return {"moments": _upper(x.T @ x).to(features.dtype), "sums": sums}

    def additive(self, statistics: State) -> State:
        """Moments and class sums."""
        if self.send == "moments":
            return statistics
        R = statistics["factor"].double()
        return {"moments": _upper(R.T @ R), "sums": statistics["sums"].double()}

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


def _upper(matrix: Tensor) -> Tensor:
    row, column = torch.triu_indices(*matrix.shape)
    return matrix[row, column]


part = Ridge

"""Negative log-likelihoods at many temperatures, from which a federated temperature is computed.

Temperature scaling divides all logits by one number T (Guo et al., On Calibration of Modern Neural Networks, ICML 2017,
arXiv 1706.04599). The loss of all examples at any T is the sum of the clients' losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.parts import setting
from fedpeft.peft.adapter import State
from fedpeft.trust.question import NO_MATRICES, WORST_LOSS, Matrices, Question

POINTS = 41


@dataclass(frozen=True)
class Likelihoods(Question):
    """The loss at temperatures from `low` to `high`, evenly on a logarithmic scale."""

    low: float = setting(0.05, "smallest temperature", low=1e-3, high=1e3)
    high: float = setting(20.0, "largest temperature", low=1e-3, high=1e3)
    points: int = setting(POINTS, "number of temperatures", low=3, high=1000)

    @property
    def grid(self) -> Tensor:
        """Temperatures, (points,)."""
        ends = torch.tensor([self.low, self.high], dtype=torch.float64).log()
        return torch.linspace(float(ends[0]), float(ends[1]), self.points, dtype=torch.float64).exp()

    def shapes(self, classes: int, matrices: Matrices = NO_MATRICES) -> dict[str, tuple[int, ...]]:
        """Return the shape of the losses, one for each temperature."""
        return {"loss": (self.points,)}

    def compute_sums(self, logits: Tensor, labels: Tensor) -> State:
        """Compute the losses in nats."""
        losses = [
            torch.nn.functional.cross_entropy(logits / temperature, labels, reduction="sum")
            for temperature in self.grid
        ]
        return {"loss": torch.stack(losses)}

    def limits(self, rows: int) -> dict[str, float]:
        """Return `WORST_LOSS` per example, since losses have no other limit."""
        return {"loss": WORST_LOSS * rows}


part = Likelihoods

"""Sums per bin from which all usual measures of calibration are computed.

- Bins of the likeliest class (Naeini et al., AAAI 2015).
- Bins of every class's own probability (Kull et al., NeurIPS 2019, arXiv 1910.12656).
- Brier's score (1950).
- A fine histogram of confidence. It gives bins of equal mass (Nixon et al., arXiv 1904.01685; here of the likeliest
  class alone) and the risk-coverage curve (El-Yaniv and Wiener, JMLR 2010).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.parts import setting
from fedpeft.peft.adapter import State
from fedpeft.trust.question import NO_MATRICES, WORST_LOSS, Matrices, Question

CELLS = 1000
"""Number of equally wide cells from 0 to 1 of the fine histogram."""

COUNT, CONFIDENCE, CORRECT = 0, 1, 2
"""Indices of a bin's sums in the last dimension: examples, their probabilities, and examples of the class."""


@dataclass(frozen=True)
class Reliability(Question):
    """Sums per bin of predictions whose logits are divided by `temperature`."""

    temperature: float = setting(1.0, "divisor of the logits", low=1e-3, high=1e3)
    bins: int = setting(15, "number of equally wide bins from 0 to 1", low=1, high=CELLS)

    def shapes(self, classes: int, matrices: Matrices = NO_MATRICES) -> dict[str, tuple[int, ...]]:
        """Return `top` (bins, 3), `classes` (classes, bins, 3), `cells` (1000, 3), `brier` (1,), `loss` (1,)."""
        return {
            "top": (self.bins, 3),
            "classes": (classes, self.bins, 3),
            "cells": (CELLS, 3),
            "brier": (1,),
            "loss": (1,),
        }

    def compute_sums(self, logits: Tensor, labels: Tensor) -> State:
        """Compute the sums of `shapes`.

        Brier's score is the squared distance from the one-hot label, 0 to 2 per example.
        """
        logs = (logits / self.temperature).log_softmax(-1)
        chances = logs.exp()
        confidence, predicted = chances.max(-1)
        right = (predicted == labels).double()
        truth = torch.nn.functional.one_hot(labels, chances.shape[1]).double()
        return {
            "top": bin_rows(confidence, right, self.bins),
            "classes": torch.stack([bin_rows(p, y, self.bins) for p, y in zip(chances.T, truth.T, strict=True)]),
            "cells": bin_rows(confidence, right, CELLS),
            "brier": (chances - truth).square().sum().reshape(1),
            "loss": -logs.gather(1, labels[:, None]).sum().reshape(1),
        }

    def limits(self, rows: int) -> dict[str, float]:
        """Return the limits of Brier's score and the loss; counts are at most the number of examples."""
        return {"brier": 2.0 * rows, "loss": WORST_LOSS * rows}


def bin_rows(chances: Tensor, right: Tensor, bins: int) -> Tensor:
    """Sum examples, `chances` (rows,) in 0 to 1 and `right` (rows,) by bin, (bins, 3).

    A bin includes its lower edge.
    """
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    place = (torch.bucketize(chances.contiguous(), edges, right=True) - 1).clamp(0, bins - 1)
    sums = torch.zeros(bins, 3, dtype=torch.float64)
    return sums.index_add_(0, place, torch.stack([torch.ones_like(chances), chances, right], dim=1))


part = Reliability

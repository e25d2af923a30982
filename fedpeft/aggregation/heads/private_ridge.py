"""Ridge regression from noisy moments of projected features, after AdaSSP (Wang, arXiv 1803.02596).

phi = P x / |P x|, where P is a fixed random projection to `dimensions`, and y is the one-hot label. Clients release
A = sum phi phi^T and b = sum phi y^T. Their noisy sums have the standard deviation s in each entry:

    W = scale * (A+ + (strength * tr A / dimensions + damping * s sqrt(2 dimensions)) I)^-1 b

s sqrt(2 dimensions) is about the largest eigenvalue of A's noise, and the ridge grows with it. A+ is A without negative
eigenvalues, which only noise can produce, so a small ridge is enough. Deviation: AdaSSP spends a third of its budget on
the smallest eigenvalue of A and computes the ridge from it; here nothing is spent on that.

A is symmetric and travels as its diagonal and its upper triangle times sqrt(2), a vector of the same norm. One example
adds 1 to it in norm, since |phi|^2 = 1, and the noise off the diagonal is sqrt(2) smaller than with plain entries. b
adds 1, and lengths a little. All is divided by the norm of the three. The energy of the noise in A grows with
dimensions^2: few dimensions are better under noise, many without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from fedpeft.aggregation.bounded_rows import LENGTH_BOUND, compute_length_sums, compute_typical_length, normalize_rows
from fedpeft.aggregation.head_start import VARIANCE, HeadStart
from fedpeft.aggregation.whitening import Whitening, create_projection
from fedpeft.parts import setting
from fedpeft.peft.adapter import State


@dataclass(frozen=True)
class PrivateRidge(HeadStart):
    """The regression head of a few random directions of the features, from bounded features.

    Its moments also whiten the features, on which `distributed_dp(whiten=True)` trains the head.
    """

    dimensions: int = setting(128, "dimensions of the random projection, at most those of the features", low=1)
    strength: float = setting(0.01, "regularization, in units of the mean squared feature", above=0)
    damping: float = setting(0.3, "further regularization, in units of the noise's largest eigenvalue", low=0)
    scale: float = setting(8.0, "factor from regression values to logits", above=0)

    bounded: ClassVar[bool] = True

    def whitened_directions(self, width: int) -> int:
        """Return the number of directions of the projection."""
        return min(self.dimensions, width)

    def shapes(self, width: int, classes: int, rows: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the moments, the class sums, the sums of lengths, and the variance of the noise."""
        m = self.whitened_directions(width)
        return {"moments": (m * (m + 1) // 2,), "sums": (m, classes), "lengths": (2,), VARIANCE: (1,)}

    def statistics(self, features: Tensor, labels: Tensor, classes: int) -> State:
        """Sum over the client's examples, without noise; an example adds at most 1 in norm."""
        projected = features.double() @ create_projection(features.shape[1], self.dimensions).T
        phi, y = normalize_rows(projected), functional.one_hot(labels, classes).double()
        bound = (2 + LENGTH_BOUND) ** 0.5
        found = {
            "moments": flatten_symmetric(phi.T @ phi),
            "sums": phi.T @ y,
            "lengths": compute_length_sums(projected),
        }
        return {name: tensor / bound for name, tensor in found.items()} | {
            VARIANCE: torch.zeros(1, dtype=torch.float64)
        }

    def solve(self, total: State, width: int, classes: int) -> State:
        """Compute the head on the features, without projection."""
        moments = unflatten_symmetric(total["moments"].double())
        values, vectors = torch.linalg.eigh(moments)
        inverse = vectors @ (
            (values.clamp(min=0) + self._compute_penalty(total, moments)).reciprocal()[:, None] * vectors.T
        )
        weight = (inverse @ total["sums"].double()).T @ create_projection(width, self.dimensions)
        weight = self.scale * weight / compute_typical_length(total["lengths"])
        return {"head.weight": weight, "head.bias": torch.zeros(classes, dtype=torch.float64)}

    def compute_whitening(self, total: State, width: int) -> Whitening:
        """Compute the whitening from the moments without the mean.

        The ridge, which covers noise, adds to each variance. Examples have norm 1, so the trace of the moments is their
        number.
        """
        moments, m = unflatten_symmetric(total["moments"].double()), total["sums"].shape[0]
        penalty, rows = self._compute_penalty(total, moments), _trace(moments)
        if not rows:  # noise alone
            rows, moments = m * penalty, torch.eye(m, dtype=torch.float64) * penalty
        mean = total["sums"].double().sum(1) / rows
        values, vectors = torch.linalg.eigh(moments / rows - torch.outer(mean, mean))
        values = _remove_noise(values, _estimate_noise_edge(total) / rows)
        scales = (values + penalty / rows) ** -0.5
        gain = max(1.0, float((values * scales**2).sum()))
        turn = scales[:, None] * vectors.T / gain**0.5
        return Whitening(turn / compute_typical_length(total["lengths"]), turn @ mean, gain, width)

    def _compute_penalty(self, total: State, moments: Tensor) -> float:
        """Compute the ridge, which is added to the eigenvalues of A+."""
        return max(1e-12, self.strength * _trace(moments) / len(moments) + self.damping * _estimate_noise_edge(total))


def _estimate_noise_edge(total: State) -> float:
    """Estimate the largest eigenvalue of the moments' noise."""
    return math.sqrt(2 * total["sums"].shape[0] * float(total[VARIANCE]))


def _remove_noise(values: Tensor, edge: float) -> Tensor:
    """Estimate eigenvalues without the noise, whose eigenvalues are between -edge and edge.

    Values below the edge become 0 (Benaych-Georges and Nadakuditi, arXiv 0910.2120).
    """
    shrunk = (values + (values.square() - edge**2).clamp(min=0).sqrt()) / 2
    return torch.where(values > edge, shrunk, torch.zeros_like(values))


def _trace(moments: Tensor) -> float:
    """Compute the trace; 0 if noise has made it negative."""
    return max(0.0, float(moments.diagonal().sum()))


def flatten_symmetric(matrix: Tensor) -> Tensor:
    """Convert a symmetric matrix (m, m) to a vector of the same norm, (m (m + 1) / 2,)."""
    row, column = torch.triu_indices(*matrix.shape)
    return torch.where(row == column, 1.0, 2**0.5) * matrix[row, column]


def unflatten_symmetric(vector: Tensor) -> Tensor:
    """Convert a vector of `flatten_symmetric` back to the symmetric matrix."""
    m = round(((8 * len(vector) + 1) ** 0.5 - 1) / 2)
    row, column = torch.triu_indices(m, m)
    upper = vector.new_zeros(m, m)
    upper[row, column] = vector / torch.where(row == column, 1.0, 2**0.5).to(vector)
    return upper + upper.triu(1).T


part = PrivateRidge

"""Linear discriminant analysis in closed form, for many classes of unequal sizes.

The features of each class are assumed to be normal, with a mean mu_c for each class and a common covariance S. Class c
has n_c of n examples with the mean m_c; m is the mean of all examples, and d the number of features:

    w_c = scale * S^-1 (mu_c - m),    b_c = scale * (log(n_c / n) - <S^-1 (mu_c - m), mu_c + m> / 2)
    S = W + strength * trace(W) / d * I,    W = (sum x x^T - sum_c n_c m_c m_c^T) / (n - classes with examples)
    mu_c = m + n_c / (n_c + k) * (m_c - m),    k = trace(W) / between

Here `between` is the variance of the classes' means, estimated by the analysis of variance. S is that of Friedman's
regularized discriminant analysis (JASA 84, 1989). The mean mu_c is the best linear prediction of a random effect
(Robinson, Statistical Science 6, 1991), since the mean of a class with few examples is mostly noise.

The head needs only the sums of `ridge`. A regression on one-hot labels stays near 0 for classes with few examples,
while this head uses each class's own mean. On Reuters R52 it starts four points above `ridge`. On tasks with few large
classes it starts no higher (`python -m experiments.few_rows --head discriminant`).

Features are not normal, so the logits are too confident; `scale` compensates for that. A class without examples lies at
the mean of all, with half an example. Coarse codecs can make variances negative. The size of such a variance is that of
the error along its direction, so its absolute value is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedpeft.aggregation.head_start import HeadStart
from fedpeft.aggregation.second_moments import FACTOR, MOMENTS, WIDE, SecondMoments, build_moments, solve_system
from fedpeft.parts import setting
from fedpeft.peft.adapter import State

HALF_A_ROW = 0.5
"""Least examples of a class; coarse codecs can make small counts negative."""

FLOOR = 1e-3
"""Least variance within classes for the shrinkage, as a share of the variance of all examples.

Classes with one example each have no variance within.
"""

MOST = 1.0
"""Largest default strength; the default is d / n, the features per example."""


@dataclass(frozen=True)
class Discriminant(SecondMoments):
    """The head of classes with normal features and a common covariance."""

    strength: float | None = setting(
        None,
        "shrinkage of the covariance, in units of the mean variance within classes; none: d / n, at most 1",
        above=0,
    )
    scale: float = setting(0.6, "factor of the logits", above=0)
    send: str = setting(MOMENTS, "what clients send: moments, or their factor", choices=(MOMENTS, FACTOR))

    def compact(self) -> HeadStart:
        """Return this head with factors instead of moments."""
        return replace(self, send=FACTOR)

    def solve(self, total: State, width: int, classes: int) -> State:
        """Compute the head."""
        moments, sums = build_moments(total, width)[:-1, :-1], total["sums"].double()
        counts, rows = sums[-1], float(sums[-1].sum().clamp(min=1))
        there = counts > HALF_A_ROW
        counts = counts.clamp(min=HALF_A_ROW)
        center = sums[:-1].sum(1, keepdim=True) / rows
        offsets = torch.where(there, sums[:-1] / counts - center, 0.0)  # (width, classes)
        scatter = moments - rows * center @ center.T
        within = (scatter - (offsets * counts) @ offsets.T) / max(rows - float(there.sum()), 1.0)
        offsets = offsets * _compute_trust(offsets, counts * there, float(within.trace()))
        variance = max(float(within.diagonal().mean()), FLOOR * float(scatter.diagonal().mean()) / rows)
        strength = self.strength or min(width / rows, MOST)
        covariance = _regularize(within, strength * max(variance, 0.0))
        weights = solve_system(covariance, offsets)
        bias = (counts / rows).log() - (weights * (offsets + 2 * center)).sum(0) / 2
        return {"head.weight": self.scale * weights.T.contiguous(), "head.bias": self.scale * bias}


def _regularize(within: Tensor, spread: float) -> Tensor:
    """Return within + spread * I, with the absolute eigenvalues of `within`.

    For many features, the eigenvalues take a minute and are only computed if a Cholesky factorization fails.
    """
    system = within + spread * torch.eye(len(within), dtype=torch.float64)
    if len(within) > WIDE and not torch.linalg.cholesky_ex(system).info:
        return system
    values, vectors = torch.linalg.eigh(within)
    made: Tensor = vectors * (values.abs() + spread) @ vectors.T
    return made


def _compute_trust(offsets: Tensor, counts: Tensor, within: float) -> Tensor:
    """Return n_c / (n_c + k), (classes,).

    Args:
        offsets: differences of the classes' means from the mean of all, (width, classes).
        counts: examples of each class; 0: none.
        within: variance of examples around their class's mean, summed over all features.
    """
    rows, classes = float(counts.sum()), int((counts > 0).sum())
    spread = float((offsets.square().sum(0) * counts).sum()) - (classes - 1) * within
    between = max(spread / max(rows - float(counts.square().sum()) / max(rows, 1.0), 1.0), 0.0)
    return between * counts / (between * counts + within) if within > 0 else (counts > 0).double()


part = Discriminant

"""Linear discriminant analysis in closed form, for many classes of unequal sizes.

Classes are taken to be normal, around means mu_c of their own, with one covariance S within all of them. With n_c of n
rows in class c, d features, m_c the mean of its rows and m that of all:

    w_c = scale * S^-1 (mu_c - m),    b_c = scale * (log(n_c / n) - <S^-1 (mu_c - m), mu_c + m> / 2)
    S = W + strength * trace(W) / d * I,    W = (sum x x^T - sum_c n_c m_c m_c^T) / (n - classes with rows)
    mu_c = m + n_c / (n_c + k) * (m_c - m),    k = trace(W) / between

where `between` is the variance of the classes' means, as the analysis of variance estimates it. S is that of Friedman
(Regularized Discriminant Analysis, JASA 84, 1989), mu_c the best linear prediction of a random effect (Robinson,
Statistical Science 6, 1991): a class of few rows has hardly a mean of its own, and what their noise makes of it would
be believed.

It needs the sums of `ridge` and no others. A regression on one-hot labels says little of classes with few rows, whose
values stay near 0; this weighs each class by its own mean. On Reuters R52 it starts four points above, and on tasks of
few large classes no higher (`python -m experiments.few_rows --head discriminant`).

Features are not normal, and what is said of them is too sure: `scale` makes up for that. A class without rows is taken
to lie at the mean of all, with half a row. Coarse codes can make variances negative; such a one is the size of the
error along its direction, and is taken to be as large as that.
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
"""What a class has at least; coarse codes may leave less than nothing of few rows."""

FLOOR = 1e-3
"""Of the variance of all rows, what classes have within at least where it is shrunk: of one row each they show none."""

MOST = 1.0
"""The strength where none is given is d / n, the features that a row has to tell of, and at most this."""


@dataclass(frozen=True)
class Discriminant(SecondMoments):
    """The normal classes' head of the frozen features."""

    strength: float | None = setting(
        None,
        "shrinkage of the covariance, in units of the mean variance within classes; none: d / n, at most 1",
        above=0,
    )
    scale: float = setting(0.6, "factor of the logits", above=0)
    send: str = setting(MOMENTS, "what clients send: moments, or their factor", choices=(MOMENTS, FACTOR))

    def compact(self) -> HeadStart:
        """With factors instead of moments."""
        return replace(self, send=FACTOR)

    def solve(self, total: State, width: int, classes: int) -> State:
        """The head."""
        moments, sums = build_moments(total, width)[:-1, :-1], total["sums"].double()
        counts, rows = sums[-1], float(sums[-1].sum().clamp(min=1))
        there = counts > HALF_A_ROW
        counts = counts.clamp(min=HALF_A_ROW)
        centre = sums[:-1].sum(1, keepdim=True) / rows
        offsets = torch.where(there, sums[:-1] / counts - centre, 0.0)  # (width, classes)
        scatter = moments - rows * centre @ centre.T
        within = (scatter - (offsets * counts) @ offsets.T) / max(rows - float(there.sum()), 1.0)
        offsets = offsets * _compute_trust(offsets, counts * there, float(within.trace()))
        variance = max(float(within.diagonal().mean()), FLOOR * float(scatter.diagonal().mean()) / rows)
        strength = self.strength or min(width / rows, MOST)
        covariance = _regularize(within, strength * max(variance, 0.0))
        weights = solve_system(covariance, offsets)
        bias = (counts / rows).log() - (weights * (offsets + 2 * centre)).sum(0) / 2
        return {"head.weight": self.scale * weights.T.contiguous(), "head.bias": self.scale * bias}


def _regularize(within: Tensor, spread: float) -> Tensor:
    """within + spread * I, with the eigenvalues of `within` as if none were negative: of many features only where some
    make a difference, since it takes a minute."""
    system = within + spread * torch.eye(len(within), dtype=torch.float64)
    if len(within) > WIDE and not torch.linalg.cholesky_ex(system).info:
        return system
    values, vectors = torch.linalg.eigh(within)
    made: Tensor = vectors * (values.abs() + spread) @ vectors.T
    return made


def _compute_trust(offsets: Tensor, counts: Tensor, within: float) -> Tensor:
    """n_c / (n_c + k), (classes,), of means (width, classes) that lie `offsets` from the mean of all.

    Args:
        offsets: of the classes' means.
        counts: their rows; 0: none.
        within: the variance of rows around them, over all features.
    """
    rows, classes = float(counts.sum()), int((counts > 0).sum())
    spread = float((offsets.square().sum(0) * counts).sum()) - (classes - 1) * within
    between = max(spread / max(rows - float(counts.square().sum()) / max(rows, 1.0), 1.0), 0.0)
    return between * counts / (between * counts + within) if within > 0 else (counts > 0).double()


part = Discriminant

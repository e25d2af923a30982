"""Ridge regression from features to one-hot labels, in closed form (the idea of Fed3R, arXiv 2406.01116).

With x the feature and a constant 1, y the one-hot label:

    W = scale * (sum x x^T + strength * (sum |x|^2) / d * I)^-1 (sum x y^T)

with d features. The constant does not count as a feature: it is neither part of |x|^2 nor shrunk.

The best strength depends on the number n of examples: with about as many as features, a weak ridge fits their noise. If
n is below 12 d and no strength is given, it is computed from the sums (`fedpeft.aggregation.cross_validation`).

`scale` turns regression values (between 0 and 1) into logits whose softmax is neither flat nor saturated. If y is a
vector, as in `fedpeft.models.tasks.captions`, the scale is 1.

If labels are numbers, y is the standardized number and `scale` is 1, so the head is the ridge regression. If an example
has several labels, y is 1/2 for these and -1/2 for the others. A logit is then above 0 if the regression value is
nearer to 1 than to 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fedpeft.aggregation.cross_validation import choose_strength
from fedpeft.aggregation.head_start import HeadStart
from fedpeft.aggregation.second_moments import FACTOR, MOMENTS, SecondMoments, build_moments, solve_system
from fedpeft.parts import setting
from fedpeft.peft.adapter import State


@dataclass(frozen=True)
class Ridge(SecondMoments):
    """The regression head of the frozen features."""

    strength: float | None = setting(
        None,
        "regularization, in units of the mean squared feature; none: 0.001, or by cross-validation for few examples",
        above=0,
    )
    scale: float = setting(8.0, "factor from regression values to logits", above=0)
    send: str = setting(MOMENTS, "what clients send: moments, or their factor", choices=(MOMENTS, FACTOR))

    fits_labels: ClassVar[bool] = True

    @property
    def predicts_targets(self) -> bool:
        """Whether outputs are regression values: with scale 1."""
        return self.scale == 1.0

    @property
    def has_squares(self) -> bool:
        """Whether clients also send sums of y^2, which choose the strength."""
        return self.strength is None

    def compact(self) -> HeadStart:
        """Return this head with factors instead of moments."""
        return replace(self, send=FACTOR)

    def fit_to_targets(self, targets: str) -> HeadStart:
        """Return this head without scale for numbers, since the regression predicts them directly."""
        return replace(self, scale=1.0) if targets == "numbers" else self

    def solve(self, total: State, width: int, classes: int) -> State:
        """Compute the head."""
        moments, sums = build_moments(total, width), total["sums"].double()
        strength = self.strength or choose_strength(moments, sums, total["squares"].double())
        penalty = strength * moments.diagonal()[:-1].mean()
        penalties = torch.full((width + 1,), float(penalty), dtype=torch.float64)
        penalties[-1] = 0.0  # the constant is not shrunk
        weights = self.scale * solve_system(moments + penalties.diag(), sums)
        return {
            "head.weight": weights[:-1].T.contiguous(),
            "head.bias": weights[-1].clone(memory_format=torch.contiguous_format),
        }


part = Ridge

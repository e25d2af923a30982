"""Ridge regression from features to one-hot labels, in closed form (the idea of Fed3R, arXiv 2406.01116).

With x the feature and a constant 1, y the one-hot label:

    W = scale * (sum x x^T + strength * (sum |x|^2) / d * I)^-1 (sum x y^T)

with d features, of which the constant is none: it is neither counted in |x|^2 nor shrunk.

How strong it has to be depends on the rows: of about as many as features, a weak one fits their noise. Where n is
below 12 d, and no strength is given, the sums tell it (`fedpeft.aggregation.cross_validation`).

Both sums run over all rows of all clients, so the head is that of the pooled data, exactly. `scale` turns regression
values (between 0 and 1) into logits whose softmax is neither flat nor saturated. Where y is a vector of its own, as of
`fedpeft.models.tasks.captions`, the scale is 1.

Where labels are numbers, y is the standardised number and `scale` is 1: the head is the ridge regression itself. Where
a row has any of several, y is 1/2 for those it has and -1/2 for the others, so that a logit is above 0 where the
regression value is nearer to 1 than to 0.

The inverse amplifies errors in the directions where features vary little, so moments can't be sent coarsely. Their
factor can: with all rows stacked, (X Y) = U S V^T, and F = U^T (X Y), so that F_x^T F_x and F_x^T F_y are the two sums.
The rows of F stand for the client's rows as far as the head can tell, at most as many as there are columns, orthogonal,
and in falling order of energy. An error in F is weighed by F itself, so that small directions get small errors; and the
head is the regression of what arrives, whatever was lost. A quantizer with one step for all rows is reverse
water-filling: rows of little energy cost little, or vanish. In the singular values an error of a label counts as much
as one of a feature's length, and the codec is told so (`importance`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpeft.aggregation.cross_validation import chosen_strength
from fedpeft.aggregation.head_start import HeadStart
from fedpeft.parts import setting
from fedpeft.peft.adapter import State


@dataclass(frozen=True)
class Ridge(HeadStart):
    """The regression head of the frozen features."""

    strength: float | None = setting(
        None,
        "regularisation, in units of the mean squared feature; none: 0.001, or of few rows by cross-validation",
        above=0,
    )
    scale: float = setting(8.0, "factor from regression values to logits", above=0)
    send: str = setting("moments", "what clients send: moments, or their factor", choices=("moments", "factor"))

    codecs: ClassVar[Mapping[str, str]] = {
        "": "adaptive(bits=2.0, per=row) | rans",
        "tiny": "adaptive(bits=0.7, per=row) | rans",
    }

    def compact(self) -> HeadStart:
        """With factors instead of moments."""
        return replace(self, send="factor")

    def shapes(self, width: int, classes: int, rows: int) -> dict[str, tuple[int, ...]]:
        """The upper triangle of the features' second moments, the class sums, and, where the strength has to be chosen,
        the sums of y^2; or the factor, in two parts."""
        if self.send == "factor":
            kept = min(rows, width + 1 + classes)
            return {"features": (kept, width + 1), "labels": (kept, classes)}
        of_moments = {"moments": ((width + 1) * (width + 2) // 2,), "sums": (width + 1, classes)}
        return of_moments | ({"squares": (classes,)} if self.strength is None else {})

    def fitted(self, targets: str) -> HeadStart:
        """Numbers are what the regression says, and are not scaled to be logits."""
        return replace(self, scale=1.0) if targets == "numbers" else self

    def statistics(self, features: Tensor, labels: Tensor, classes: int) -> State:
        """Sums over the client's rows, in the precision of the features; labels that are vectors (n, classes) already
        are taken as they are."""
        x = F.pad(features.double(), (0, 1), value=1.0)
        y = regressed(labels, classes)
        found = _factor(x, y) if self.send == "factor" else self._sums(x, y)
        return {name: tensor.to(features.dtype) for name, tensor in found.items()}

    def _sums(self, x: Tensor, y: Tensor) -> State:
        squares = {"squares": y.square().sum(0)} if self.strength is None else {}
        return {"moments": _upper(x.T @ x), "sums": x.T @ y} | squares

    def importance(self, statistics: State) -> State:
        """Of labels: the root mean square length of a feature, in units of that of a label (1, if it is a class)."""
        if self.send == "moments":
            return {}
        length = statistics["features"].norm() / statistics["labels"].norm().clamp(min=1e-30)
        return {"labels": torch.full_like(statistics["labels"], float(length))}

    def additive(self, statistics: State) -> State:
        """Moments, class sums, and sums of y^2 where the strength has to be chosen."""
        if self.send == "moments":
            return statistics
        return self._sums(statistics["features"].double(), statistics["labels"].double())

    def class_counts(self, total: State) -> Tensor:
        """The class sums of the constant."""
        return total["sums"][-1]

    def solve(self, total: State, width: int, classes: int) -> State:
        """The head."""
        size = width + 1
        upper = torch.zeros(size, size, dtype=torch.float64)
        row, column = torch.triu_indices(size, size)
        upper[row, column] = total["moments"].double()
        moments = upper + upper.triu(1).T
        strength = self.strength or chosen_strength(moments, total["sums"].double(), total["squares"].double())
        penalty = strength * moments.diagonal()[:-1].mean()
        penalties = torch.full((size,), float(penalty), dtype=torch.float64)
        penalties[-1] = 0.0  # the constant is not shrunk
        weights = self.scale * _solution(moments + penalties.diag(), total["sums"].double())
        return {
            "head.weight": weights[:-1].T.contiguous(),
            "head.bias": weights[-1].clone(memory_format=torch.contiguous_format),
        }


def regressed(labels: Tensor, classes: int) -> Tensor:
    """y (n, classes), fp64, of labels: classes (n,), standardised numbers (n,), which of several a row has, bool
    (n, classes), or vectors (n, classes)."""
    if labels.dtype == torch.bool:
        return labels.double() - 0.5
    if labels.ndim == 2:
        return labels.double()
    return labels.double()[:, None] if labels.is_floating_point() else F.one_hot(labels, classes).double()


WIDE = 2048
"""Features from which on the system is factored; of fewer the least norm takes a moment, too."""

NOTHING = 1e-9
"""What is left of a feature, its pivot, in units of its moment, where those before it tell all of it."""


def _solution(system: Tensor, sums: Tensor) -> Tensor:
    """Its least norm: coarse codes may leave nothing of the constant, or of anything, and there is no inverse then."""
    if len(system) > WIDE:
        triangle, failed = torch.linalg.cholesky_ex(system)
        if not failed and bool((triangle.diagonal() ** 2 > NOTHING * system.diagonal()).all()):
            return torch.cholesky_solve(sums, triangle)
    found: Tensor = torch.linalg.lstsq(system, sums, driver="gelsd").solution
    return found


def _factor(x: Tensor, y: Tensor) -> State:
    """U^T (x y), with U the left singular vectors of (x, length y), without those beyond its width."""
    rows = torch.cat([x, y], dim=1)
    if len(rows) > rows.shape[1]:
        rows = torch.linalg.qr(rows, mode="r").R
    x, y = rows[:, : x.shape[1]], rows[:, x.shape[1] :]
    U = torch.linalg.svd(torch.cat([x, x.norm() / y.norm().clamp(min=1e-30) * y], dim=1), full_matrices=False).U
    return {"features": U.T @ x, "labels": U.T @ y}


def _upper(matrix: Tensor) -> Tensor:
    row, column = torch.triu_indices(*matrix.shape)
    return matrix[row, column]


part = Ridge

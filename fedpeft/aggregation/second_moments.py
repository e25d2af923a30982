"""Second moments for heads in closed form: sums of x x^T and x y^T, where x is the feature with a constant 1.

The sums run over all examples of all clients, so the head is exactly that of the pooled data.

An inverse amplifies errors in directions in which features vary little, so moments cannot be sent with few bits. Their
factor can. With all examples stacked, (X Y) = U S V^T and F = U^T (X Y), so F_x^T F_x and F_x^T F_y are the two sums.
For the head, the rows of F replace the client's examples. They are orthogonal, in falling order of energy, and at most
as many as the columns. An error in F is weighted by F, so small directions have small errors, and the head fits the
decoded F. A quantizer with one step for all rows is reverse water-filling: rows of little energy cost little or vanish.
In the singular values, an error of a label counts as much as one of a feature's length, which `importance` tells the
codec.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from fedpeft.aggregation.head_start import HeadStart
from fedpeft.peft.adapter import State

MOMENTS, FACTOR = "moments", "factor"
"""What clients can send."""


class SecondMoments(HeadStart):
    """A head that is solved from these sums.

    Attributes:
        send: what clients send, a setting of the head: moments or their factor.
    """

    send: str

    codecs: ClassVar[Mapping[str, str]] = {
        "": "adaptive(bits=2.0, per=row) | rans",
        "tiny": "adaptive(bits=0.7, per=row) | rans",
    }

    @property
    def has_squares(self) -> bool:
        """Whether clients also send sums of y^2; by default not."""
        return False

    def shapes(self, width: int, classes: int, rows: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the upper triangle of the second moments, the class sums, and the sums of y^2 if sent.

        If clients send the factor, the shapes are those of its two parts.
        """
        if self.send == FACTOR:
            kept = min(rows, width + 1 + classes)
            return {"features": (kept, width + 1), "labels": (kept, classes)}
        of_moments = {"moments": ((width + 1) * (width + 2) // 2,), "sums": (width + 1, classes)}
        return of_moments | ({"squares": (classes,)} if self.has_squares else {})

    def statistics(self, features: Tensor, labels: Tensor, classes: int) -> State:
        """Sum over the client's examples, in the precision of the features, or compute the factor of the sums."""
        x = functional.pad(features.double(), (0, 1), value=1.0)
        y = encode_targets(labels, classes)
        found = _compute_factor(x, y) if self.send == FACTOR else self._compute_sums(x, y)
        return {name: tensor.to(features.dtype) for name, tensor in found.items()}

    def _compute_sums(self, x: Tensor, y: Tensor) -> State:
        squares = {"squares": y.square().sum(0)} if self.has_squares else {}
        return {"moments": _get_upper_triangle(x.T @ x), "sums": x.T @ y} | squares

    def importance(self, statistics: State) -> State:
        """Return the weight of errors in labels: the ratio of the features' to the labels' root mean square length."""
        if self.send == MOMENTS:
            return {}
        length = statistics["features"].norm() / statistics["labels"].norm().clamp(min=1e-30)
        return {"labels": torch.full_like(statistics["labels"], float(length))}

    def additive(self, statistics: State) -> State:
        """Return moments, class sums, and sums of y^2 if sent."""
        if self.send == MOMENTS:
            return statistics
        return self._compute_sums(statistics["features"].double(), statistics["labels"].double())

    def class_counts(self, total: State) -> Tensor:
        """Return the class sums of the constant."""
        return total["sums"][-1]


def build_moments(total: State, width: int) -> Tensor:
    """Return sum x x^T, (width + 1, width + 1), fp64; the constant is the last."""
    size = width + 1
    upper = torch.zeros(size, size, dtype=torch.float64)
    row, column = torch.triu_indices(size, size)
    upper[row, column] = total["moments"].double()
    return upper + upper.triu(1).T


def encode_targets(labels: Tensor, classes: int) -> Tensor:
    """Convert labels to y (n, classes), fp64.

    Args:
        labels: classes (n,), standardized numbers (n,), several labels as bool (n, classes), or vectors (n, classes).
        classes: number of classes.
    """
    if labels.dtype == torch.bool:
        return labels.double() - 0.5
    if labels.ndim == 2:
        return labels.double()
    return labels.double()[:, None] if labels.is_floating_point() else functional.one_hot(labels, classes).double()


WIDE = 2048
"""Least features for which a system is factored first; for fewer, least squares are fast enough."""

NOTHING = 1e-9
"""Pivot of a feature that the features before it determine, in units of its moment."""


def solve_system(system: Tensor, sums: Tensor) -> Tensor:
    """Return the solution of a symmetric system with the least norm.

    A coarse codec can round the constant, or all, to 0. Then there is no inverse.
    """
    if len(system) > WIDE:
        triangle, failed = torch.linalg.cholesky_ex(system)
        if not failed and bool((triangle.diagonal() ** 2 > NOTHING * system.diagonal()).all()):
            return torch.cholesky_solve(sums, triangle)
    found: Tensor = torch.linalg.lstsq(system, sums, driver="gelsd").solution
    return found


def _compute_factor(x: Tensor, y: Tensor) -> State:
    """Return U^T (x y), where U contains the left singular vectors of (x, length y)."""
    rows = torch.cat([x, y], dim=1)
    if len(rows) > rows.shape[1]:
        rows = torch.linalg.qr(rows, mode="r").R
    x, y = rows[:, : x.shape[1]], rows[:, x.shape[1] :]
    left = torch.linalg.svd(torch.cat([x, x.norm() / y.norm().clamp(min=1e-30) * y], dim=1), full_matrices=False).U
    return {"features": left.T @ x, "labels": left.T @ y}


def _get_upper_triangle(matrix: Tensor) -> Tensor:
    row, column = torch.triu_indices(*matrix.shape)
    return matrix[row, column]

"""What heads in closed form are made of: sums of x x^T and x y^T over rows, with x the feature and a constant 1.

Both run over all rows of all clients, so the head is that of the pooled data, exactly.

An inverse amplifies errors in the directions where features vary little, so moments can't be sent coarsely. Their
factor can: with all rows stacked, (X Y) = U S V^T, and F = U^T (X Y), so that F_x^T F_x and F_x^T F_y are the two sums.
The rows of F stand for the client's rows as far as the head can tell, at most as many as there are columns, orthogonal,
and in falling order of energy. An error in F is weighed by F itself, so that small directions get small errors; and the
head is that of what arrives, whatever was lost. A quantizer with one step for all rows is reverse
water-filling: rows of little energy cost little, or vanish. In the singular values an error of a label counts as much
as one of a feature's length, and the codec is told so (`importance`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpeft.aggregation.head_start import HeadStart
from fedpeft.peft.adapter import State

MOMENTS, FACTOR = "moments", "factor"
"""What clients can send."""


class SecondMoments(HeadStart):
    """A head that is solved for from these sums.

    Attributes:
        send: what clients send, a setting of the head: moments, or their factor.
    """

    send: str

    codecs: ClassVar[Mapping[str, str]] = {
        "": "adaptive(bits=2.0, per=row) | rans",
        "tiny": "adaptive(bits=0.7, per=row) | rans",
    }

    @property
    def has_squares(self) -> bool:
        """Whether sums of y^2 are sent, too; by default not."""
        return False

    def shapes(self, width: int, classes: int, rows: int) -> dict[str, tuple[int, ...]]:
        """The upper triangle of the features' second moments, the class sums, and, where they are sent, the sums of
        y^2; or the factor, in two parts."""
        if self.send == FACTOR:
            kept = min(rows, width + 1 + classes)
            return {"features": (kept, width + 1), "labels": (kept, classes)}
        of_moments = {"moments": ((width + 1) * (width + 2) // 2,), "sums": (width + 1, classes)}
        return of_moments | ({"squares": (classes,)} if self.has_squares else {})

    def statistics(self, features: Tensor, labels: Tensor, classes: int) -> State:
        """Sums over the client's rows, in the precision of the features; labels that are vectors (n, classes) already
        are taken as they are."""
        x = F.pad(features.double(), (0, 1), value=1.0)
        y = encode_targets(labels, classes)
        found = _compute_factor(x, y) if self.send == FACTOR else self._compute_sums(x, y)
        return {name: tensor.to(features.dtype) for name, tensor in found.items()}

    def _compute_sums(self, x: Tensor, y: Tensor) -> State:
        squares = {"squares": y.square().sum(0)} if self.has_squares else {}
        return {"moments": _get_upper_triangle(x.T @ x), "sums": x.T @ y} | squares

    def importance(self, statistics: State) -> State:
        """Of labels: the root mean square length of a feature, in units of that of a label (1, if it is a class)."""
        if self.send == MOMENTS:
            return {}
        length = statistics["features"].norm() / statistics["labels"].norm().clamp(min=1e-30)
        return {"labels": torch.full_like(statistics["labels"], float(length))}

    def additive(self, statistics: State) -> State:
        """Moments, class sums, and, where they are sent, sums of y^2."""
        if self.send == MOMENTS:
            return statistics
        return self._compute_sums(statistics["features"].double(), statistics["labels"].double())

    def class_counts(self, total: State) -> Tensor:
        """The class sums of the constant."""
        return total["sums"][-1]


def build_moments(total: State, width: int) -> Tensor:
    """sum x x^T, (width + 1, width + 1), fp64; the constant is the last."""
    size = width + 1
    upper = torch.zeros(size, size, dtype=torch.float64)
    row, column = torch.triu_indices(size, size)
    upper[row, column] = total["moments"].double()
    return upper + upper.triu(1).T


def encode_targets(labels: Tensor, classes: int) -> Tensor:
    """y (n, classes), fp64, of labels: classes (n,), standardised numbers (n,), which of several a row has, bool
    (n, classes), or vectors (n, classes)."""
    if labels.dtype == torch.bool:
        return labels.double() - 0.5
    if labels.ndim == 2:
        return labels.double()
    return labels.double()[:, None] if labels.is_floating_point() else F.one_hot(labels, classes).double()


WIDE = 2048
"""Features from which on a system is factored; of fewer the least norm takes a moment, too."""

NOTHING = 1e-9
"""What is left of a feature, its pivot, in units of its moment, where those before it tell all of it."""


def solve_system(system: Tensor, sums: Tensor) -> Tensor:
    """What solves a symmetric system, of the least norm: coarse codes may leave nothing of the constant, or of
    anything, and there is no inverse then."""
    if len(system) > WIDE:
        triangle, failed = torch.linalg.cholesky_ex(system)
        if not failed and bool((triangle.diagonal() ** 2 > NOTHING * system.diagonal()).all()):
            return torch.cholesky_solve(sums, triangle)
    found: Tensor = torch.linalg.lstsq(system, sums, driver="gelsd").solution
    return found


def _compute_factor(x: Tensor, y: Tensor) -> State:
    """U^T (x y), with U the left singular vectors of (x, length y), without those beyond its width."""
    rows = torch.cat([x, y], dim=1)
    if len(rows) > rows.shape[1]:
        rows = torch.linalg.qr(rows, mode="r").R
    x, y = rows[:, : x.shape[1]], rows[:, x.shape[1] :]
    U = torch.linalg.svd(torch.cat([x, x.norm() / y.norm().clamp(min=1e-30) * y], dim=1), full_matrices=False).U
    return {"features": U.T @ x, "labels": U.T @ y}


def _get_upper_triangle(matrix: Tensor) -> Tensor:
    row, column = torch.triu_indices(*matrix.shape)
    return matrix[row, column]

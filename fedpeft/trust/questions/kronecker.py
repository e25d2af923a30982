"""The Kronecker factors of a model's LoRA matrices on its training set, in one exchange.

A federated Laplace approximation uses them (`fedpeft.trust.kronecker`). An answer has the squares of the matrices'
sides as its size, so only simulations ask it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedpeft.errors import PayloadError
from fedpeft.peft.adapter import State
from fedpeft.trust.kronecker import name_sums
from fedpeft.trust.question import NO_MATRICES, ROWS, Matrices, Question


@dataclass(frozen=True)
class Kronecker(Question):
    """Sums from the model itself instead of its logits (`fedpeft.clients.curvature`)."""

    of_model: ClassVar[bool] = True
    largest: ClassVar[int] = 2**28

    def shapes(self, classes: int, matrices: Matrices = NO_MATRICES) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the sums.

        These are inputs (in, in) and outputs (out, out) for each matrix (out, in), and `tokens` (1,) and `loss` (1,).
        """
        shapes: dict[str, tuple[int, ...]] = {"tokens": (1,), "loss": (1,)}
        names = name_sums(matrices)
        for name, (out, in_) in matrices.items():
            shapes |= {names[name][0]: (in_, in_), names[name][1]: (out, out)}
        return shapes

    def check(self, answer: State, rows: int) -> None:
        """Refuse matrices that are not sums of squares: not symmetric, or with a negative diagonal.

        Raises:
            PayloadError: names the reason.
        """
        if float(answer[ROWS]) != rows:
            raise PayloadError(
                f"FP6165 a client's sums are over {float(answer[ROWS]):g} examples, and it reported {rows}"
            )
        for name, tensor in answer.items():
            size = float(tensor.abs().max())
            if tensor.ndim == 2 and not torch.allclose(tensor, tensor.T, rtol=1e-6, atol=1e-9 * size):
                raise PayloadError(f"FP6172 the sum of squares {name} of a client is not symmetric")
            if bool(((tensor.diagonal() if tensor.ndim == 2 else tensor) < 0).any()):
                raise PayloadError(f"FP6173 the sum of squares {name} of a client is negative")


part = Kronecker

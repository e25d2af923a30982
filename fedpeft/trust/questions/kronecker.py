"""The Kronecker factors of a model's LoRA matrices on the rows that it was trained on, in one exchange.

A federated Laplace approximation is made of them (`fedpeft.trust.kronecker`). An answer is as long as the matrices'
sides squared, so it is asked in simulations only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedpeft.errors import PayloadError
from fedpeft.trust.kronecker import name_sums
from fedpeft.trust.question import NO_MATRICES, ROWS, Matrices, Question, State


@dataclass(frozen=True)
class Kronecker(Question):
    """Sums that come from the model itself, and not from its logits (`fedpeft.clients.curvature`)."""

    of_model: ClassVar[bool] = True
    largest: ClassVar[int] = 2**28

    def shapes(self, classes: int, matrices: Matrices = NO_MATRICES) -> dict[str, tuple[int, ...]]:
        """Of each matrix (out, in): inputs (in, in) and outputs (out, out); `tokens` (1,) and `loss` (1,)."""
        found: dict[str, tuple[int, ...]] = {"tokens": (1,), "loss": (1,)}
        names = name_sums(matrices)
        for name, (out, in_) in matrices.items():
            found |= {names[name][0]: (in_, in_), names[name][1]: (out, out)}
        return found

    def check(self, answer: State, rows: int) -> None:
        """Refuse sums of products that are none: of such, matrices are symmetric with a diagonal that is not negative.

        Raises:
            PayloadError: why.
        """
        if float(answer[ROWS]) != rows:
            raise PayloadError(f"FP6165 sums over {float(answer[ROWS]):g} rows, of a client that says it has {rows}")
        for name, tensor in answer.items():
            size = float(tensor.abs().max())
            if tensor.ndim == 2 and not torch.allclose(tensor, tensor.T, rtol=1e-6, atol=1e-9 * size):
                raise PayloadError(f"FP6172 a sum of squares called {name} is not symmetric")
            if bool(((tensor.diagonal() if tensor.ndim == 2 else tensor) < 0).any()):
                raise PayloadError(f"FP6173 a sum of squares called {name} is negative")


part = Kronecker

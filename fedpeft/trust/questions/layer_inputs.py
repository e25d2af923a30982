"""The second moments of what goes into each adapted layer, on the rows that a client trains on.

    C = sum x x^T    over the tokens of all rows; or its diagonal alone

They add up over clients, and say along which directions a layer is used at all (`fedpeft.strategies.inf_lora`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.errors import PayloadError
from fedpeft.parts import setting
from fedpeft.trust.question import NO_MATRICES, ROWS, Matrices, Question, State


@dataclass(frozen=True)
class LayerInputs(Question):
    """By the name of each lora_A, the upper triangle of C, row by row, or its diagonal."""

    diagonal: bool = setting(False, "only the mean squares' sums, (in,)")

    of_model: ClassVar[bool] = True
    largest: ClassVar[int] = 2**28

    def shapes(self, classes: int, matrices: Matrices = NO_MATRICES) -> dict[str, tuple[int, ...]]:
        """(in (in + 1) / 2,) or (in,) of each layer."""
        widths = {name: shape[1] for name, shape in matrices.items() if name.endswith(".lora_A.weight")}
        return {name: (d,) if self.diagonal else (d * (d + 1) // 2,) for name, d in widths.items()}

    def check(self, answer: State, rows: int) -> None:
        """Refuse sums of squares that are none.

        Raises:
            PayloadError: why.
        """
        if float(answer[ROWS]) != rows:
            raise PayloadError(f"FP6165 sums over {float(answer[ROWS]):g} rows, of a client that says it has {rows}")
        for name, tensor in answer.items():
            squares = tensor if self.diagonal or name == ROWS else tensor[_find_diagonal(len(tensor))]
            if not bool(torch.isfinite(tensor).all()) or bool((squares < 0).any()):
                raise PayloadError(f"FP6174 a sum of squares of inputs of {name} is negative, or no number")


def _find_diagonal(numbers: int) -> Tensor:
    """Where the diagonal lies in an upper triangle of so many numbers, row by row."""
    size = int(((8 * numbers + 1) ** 0.5 - 1) / 2 + 0.5)
    rows = torch.arange(size)
    return rows * size - rows * (rows - 1) // 2


part = LayerInputs

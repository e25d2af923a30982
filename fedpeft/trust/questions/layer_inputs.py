"""The second moments of the inputs of each adapted layer on a client's training set.

    C = sum x x^T    over the tokens of all rows; or its diagonal alone

They add up over clients, and show the directions in which a layer is used at all (`fedpeft.strategies.inf_lora`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.errors import PayloadError
from fedpeft.parts import setting
from fedpeft.peft.adapter import State
from fedpeft.trust.question import NO_MATRICES, ROWS, Matrices, Question


@dataclass(frozen=True)
class LayerInputs(Question):
    """The upper triangle of C, row by row, or its diagonal, by the name of each lora_A."""

    diagonal: bool = setting(False, "whether only the sums of squares, (in,), are sent")

    of_model: ClassVar[bool] = True
    largest: ClassVar[int] = 2**28

    def shapes(self, classes: int, matrices: Matrices = NO_MATRICES) -> dict[str, tuple[int, ...]]:
        """Return (in (in + 1) / 2,) or (in,) for each layer."""
        widths = {name: shape[1] for name, shape in matrices.items() if name.endswith(".lora_A.weight")}
        return {name: (d,) if self.diagonal else (d * (d + 1) // 2,) for name, d in widths.items()}

    def check(self, answer: State, rows: int) -> None:
        """Refuse sums that are not sums of squares.

        Raises:
            PayloadError: names the reason.
        """
        if float(answer[ROWS]) != rows:
            raise PayloadError(
                f"FP6165 a client's sums are over {float(answer[ROWS]):g} examples, and it reported {rows}"
            )
        for name, tensor in answer.items():
            squares = tensor if self.diagonal or name == ROWS else tensor[_find_diagonal(len(tensor))]
            if not bool(torch.isfinite(tensor).all()) or bool((squares < 0).any()):
                raise PayloadError(f"FP6174 the sum of squared inputs of {name} of a client is negative or not finite")


def _find_diagonal(numbers: int) -> Tensor:
    """Return the positions of the diagonal in an upper triangle of `numbers` entries, row by row."""
    size = int(((8 * numbers + 1) ** 0.5 - 1) / 2 + 0.5)
    rows = torch.arange(size)
    return rows * size - rows * (rows - 1) // 2


part = LayerInputs

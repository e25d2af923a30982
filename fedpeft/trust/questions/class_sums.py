"""Sums of features by class, on the rows that a client trains on: what a head is made of in closed form.

They are the statistics of a head's start (`fedpeft.aggregation.head_start`), of the model as it is when it is asked.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregation.head_start import HEADS
from fedpeft.errors import PayloadError
from fedpeft.parts import setting
from fedpeft.trust.question import NO_MATRICES, ROWS, Matrices, Question, State


@dataclass(frozen=True)
class ClassSums(Question):
    """The statistics of one head."""

    width: int = setting(dataclasses.MISSING, "of a feature", low=1, high=65536)
    head: str = setting("centroids", "whose statistics", choices=("centroids", "ridge"))

    of_model: ClassVar[bool] = True
    largest: ClassVar[int] = 2**28

    def shapes(self, classes: int, matrices: Matrices = NO_MATRICES) -> dict[str, tuple[int, ...]]:
        """As the head has them."""
        return HEADS.build(self.head).shapes(self.width, classes, 1)

    def sum_features(self, features: Tensor, labels: Tensor, classes: int) -> State:
        """The sums over rows, in fp64: features (rows, width), labels (rows,).

        Raises:
            PayloadError: the model's features have another width.
        """
        if features.shape[1] != self.width:
            raise PayloadError(
                f"FP6170 the server asks for features of width {self.width}, and this model's have {features.shape[1]}"
            )
        return HEADS.build(self.head).statistics(features.double(), labels, classes)

    def check(self, answer: State, rows: int) -> None:
        """Refuse sums whose classes don't have the client's rows.

        Raises:
            PayloadError: why.
        """
        counts = HEADS.build(self.head).class_counts(answer)
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in answer.values())
        right = float(answer[ROWS]) == rows and bool((counts >= 0).all()) and abs(float(counts.sum()) - rows) < 0.5
        if not (finite and right):
            raise PayloadError(
                f"FP6171 class sums over {float(counts.sum()):g} rows, of a client that says it has {rows}"
            )


part = ClassSums

"""Sums of features by class on a client's training set, from which a head is computed in closed form.

They are the statistics of a head start (`fedpeft.aggregation.head_start`) for the model at the time of the question.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.errors import PayloadError
from fedpeft.parts import setting
from fedpeft.parts.families import HEADS
from fedpeft.peft.adapter import State
from fedpeft.trust.question import NO_MATRICES, ROWS, Matrices, Question


@dataclass(frozen=True)
class ClassSums(Question):
    """The statistics of one head."""

    width: int = setting(dataclasses.MISSING, "width of a feature", low=1, high=65536)
    head: str = setting("centroids", "head start of the statistics", choices=("centroids", "ridge"))

    of_model: ClassVar[bool] = True
    largest: ClassVar[int] = 2**28

    def shapes(self, classes: int, matrices: Matrices = NO_MATRICES) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the head's statistics."""
        return HEADS.build(self.head).shapes(self.width, classes, 1)

    def sum_features(self, features: Tensor, labels: Tensor, classes: int) -> State:
        """Compute the sums over examples in fp64, for features (rows, width) and labels (rows,).

        Raises:
            PayloadError: the model's features have another width.
        """
        if features.shape[1] != self.width:
            raise PayloadError(
                f"FP6170 the server asks for features of width {self.width}, and this model's width is "
                f"{features.shape[1]}"
            )
        return HEADS.build(self.head).statistics(features.double(), labels, classes)

    def check(self, answer: State, rows: int) -> None:
        """Refuse sums whose classes do not add up to the client's examples.

        Raises:
            PayloadError: names the reason.
        """
        counts = HEADS.build(self.head).class_counts(answer)
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in answer.values())
        right = float(answer[ROWS]) == rows and bool((counts >= 0).all()) and abs(float(counts.sum()) - rows) < 0.5
        if not (finite and right):
            raise PayloadError(
                f"FP6171 a client's class sums are over {float(counts.sum()):g} examples, and it reported {rows}"
            )


part = ClassSums

"""Regression: a number for a text or an image, from a linear head on the mean of the last hidden states.

The model learns z = (y - mean) / deviation, so that one learning rate suits prices and probabilities alike. The loss is
(z' - z)^2. The dataset determines `mean` and `deviation`: they come from sums over the training set (of 1, y and y^2),
or are known beforehand. Under privacy they must be known beforehand, because unprotected sums would reveal information
about the examples. They need not be exact: the head's start in closed form corrects the mean, and the deviation affects
only the size of steps.

The headline number is the skill score of the mean squared error against the forecast `mean` (Murphy, Monthly Weather
Review 116, 1988): 1 - MSE / deviation^2. It equals R^2 if the moments are those of the scored examples. R^2 with the
scored examples' own moments is reported beside it, with the errors in the unit of y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedpeft.data.examples import Batch
from fedpeft.data.rows import Rows
from fedpeft.models.target_measures import measure_numbers
from fedpeft.models.task import RowLosses, Targets
from fedpeft.models.tasks.classification import RowTask
from fedpeft.parts import setting


@dataclass(frozen=True)
class Regression(RowTask):
    """Prediction of one number per example."""

    mean: float = setting(0.0, "mean of the labels; the model's output 0 stands for it", low=-1e30, high=1e30)
    deviation: float = setting(1.0, "standard deviation of the labels, the unit of the outputs", above=0, high=1e30)
    known: bool = setting(False, "whether mean and deviation are public and reveal nothing about the examples")

    metric = "skill"
    targets: ClassVar[Targets] = "numbers"

    def labels(self, rows: Rows) -> np.ndarray:
        """Return standardized labels, float32 (rows,)."""
        return ((np.asarray(rows.labels, np.float64) - self.mean) / self.deviation).astype(np.float32)

    def losses(self, logits: Tensor, batch: Batch) -> RowLosses:
        """Compute the squared error per example; its "correct" is 1 minus the error, at most 1 and possibly below 0."""
        errors = logits[..., 0] - batch["labels"].to(logits)
        sums = errors.square()
        return RowLosses(sums, torch.ones_like(sums), 1 - sums.detach())

    def values(self, outputs: Tensor) -> Tensor:
        """Convert outputs to the labels' unit."""
        return self.mean + self.deviation * outputs

    def measures(self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
        """Measure errors in the labels' unit, R^2 and correlations (`target_measures.measure_numbers`)."""
        predicted = self.mean + self.deviation * np.asarray(outputs, np.float64)[:, 0]
        return measure_numbers(predicted, np.asarray(labels, np.float64))

    def export_head(self, head: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert the head to outputs in the labels' unit."""
        return {"weight": head["weight"] * self.deviation, "bias": head["bias"] * self.deviation + self.mean}


part = Regression

"""Regression: a number for a text or an image, from a linear head on the mean of the last hidden states.

The model learns z = (y - mean) / deviation, so that one learning rate suits prices and probabilities alike, and the
loss is (z' - z)^2. Where `mean` and `deviation` come from, the data set says: they are sums over the training rows
(how many, of y, of y^2), or known beforehand. Under privacy they must be known beforehand: sums over rows that nothing
protects would tell of them. They need not be exact: the head's start in closed form corrects the mean, and only how far
a step goes depends on the deviation.

The headline number is the skill score of the mean squared error against the forecast `mean` (Murphy, Monthly Weather
Review 116, 1988): 1 - MSE / deviation^2. It is R^2 where the moments are those of the rows that are scored; R^2 by
these rows' own moments is beside it, with the errors in the unit of y.
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
    """One number a row."""

    mean: float = setting(0.0, "of the labels, what the model's output 0 stands for", low=-1e30, high=1e30)
    deviation: float = setting(1.0, "standard deviation of the labels, the unit of the outputs", above=0, high=1e30)
    known: bool = setting(False, "whether both were known beforehand, and tell nothing of the rows")

    metric = "skill"
    targets: ClassVar[Targets] = "numbers"

    def labels(self, rows: Rows) -> np.ndarray:
        """Standardised labels, float32 (rows,)."""
        return ((np.asarray(rows.labels, np.float64) - self.mean) / self.deviation).astype(np.float32)

    def losses(self, logits: Tensor, batch: Batch) -> RowLosses:
        """Squared error per row; what is "correct" of a row is 1 - that, at most 1, and below 0 where it is far off."""
        errors = logits[..., 0] - batch["labels"].to(logits)
        sums = errors.square()
        return RowLosses(sums, torch.ones_like(sums), 1 - sums.detach())

    def values(self, outputs: Tensor) -> Tensor:
        """In the labels' unit."""
        return self.mean + self.deviation * outputs

    def measures(self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
        """Errors in the labels' unit, R^2 and correlations (`fedpeft.models.target_measures.measure_numbers`)."""
        said = self.mean + self.deviation * np.asarray(outputs, np.float64)[:, 0]
        return measure_numbers(said, np.asarray(labels, np.float64))

    def told_head(self, head: dict[str, Tensor]) -> dict[str, Tensor]:
        """A head that speaks in the labels' unit."""
        return {"weight": head["weight"] * self.deviation, "bias": head["bias"] * self.deviation + self.mean}


part = Regression

"""Multi-label classification: any of several labels for a text or an image, with one logit per label.

The loss is the binary cross-entropy of each label. A label is predicted if its probability is at least one half. The
headline number is the share of right decisions over examples and labels (1 - Hamming loss), which is high if labels are
rare; F1 and average precision are reported beside it. The best state is chosen by the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from fedpeft.data.examples import Batch
from fedpeft.data.rows import Rows
from fedpeft.models.target_measures import measure_labels
from fedpeft.models.task import RowLosses, Targets
from fedpeft.models.tasks.classification import RowTask


@dataclass(frozen=True)
class MultiLabel(RowTask):
    """Prediction of an example's labels."""

    metric = "label_accuracy"
    targets: ClassVar[Targets] = "labels"

    def labels(self, rows: Rows) -> np.ndarray:
        """Return the labels as 0 or 1, float32 (rows, labels)."""
        return np.asarray(rows.labels, np.float32)

    def losses(self, logits: Tensor, batch: Batch) -> RowLosses:
        """Compute the binary cross-entropy per example, summed over its labels, each of which is a prediction."""
        labels = batch["labels"].to(logits)
        each = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        correct = ((logits >= 0) == (labels > 0)).sum(-1)
        return RowLosses(each.sum(-1), torch.full_like(each[..., 0], labels.shape[-1]), correct.to(each.dtype))

    def values(self, outputs: Tensor) -> Tensor:
        """Return the labels' probabilities."""
        return outputs.sigmoid()

    def measures(self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
        """Measure F1 and average precision (`fedpeft.models.target_measures.measure_labels`)."""
        return measure_labels(np.asarray(outputs, np.float64), np.asarray(labels) > 0, names)


part = MultiLabel

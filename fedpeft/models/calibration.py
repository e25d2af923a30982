"""Calibration: expected calibration error, reliability diagram and temperature scaling.

Examples are put into bins by the confidence of their predicted class. The error is the mean over examples of |accuracy
- mean confidence| of their bin. This is torchmetrics' binary calibration error of "the prediction is right", which
equals its multiclass error for the predicted class.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15
"""Number of equally wide bins from 0 to 1; most papers use it."""


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error; per bin: examples, mean confidence and accuracy (0 if the bin is empty)."""

    error: float
    rows: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for a JSON line."""
        return asdict(self)


def calibrate(confidence: NDArray[np.float64], correct: NDArray[np.float64], bins: int = BINS) -> Calibration:
    """Compute the calibration of predictions.

    Args:
        confidence: of the predicted class, in 0..1, (rows,).
        correct: whether it is right, 0 or 1, (rows,).
        bins: number of equally wide bins from 0 to 1.
    """
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    confidence = np.clip(confidence, 0.0, 1.0)
    error = binary_calibration_error(
        torch.from_numpy(confidence), torch.from_numpy(correct).long(), n_bins=bins, norm="l1"
    )
    edges = np.linspace(0, 1, bins + 1)
    position = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    rows = np.bincount(position, minlength=bins)
    divisor = np.maximum(rows, 1)
    mean = np.bincount(position, confidence, bins) / divisor
    right = np.bincount(position, correct, bins) / divisor
    return Calibration(float(error), *(tuple(values.tolist()) for values in (rows, mean, right)))


def fit_temperature(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the temperature T in 0.05 to 20 that minimizes the cross-entropy of softmax(logits / T).

    Source: Guo et al., arXiv 1706.04599.

    Args:
        logits: (rows, classes) for examples that were not trained on.
        labels: (rows,).
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float((logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean())

    best = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(best.x))

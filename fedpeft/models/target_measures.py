"""Measures of classes, numbers and multiple labels over all examples, by scikit-learn and scipy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np


def measure_classes(predicted: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Measure predicted classes against the true ones.

    Args:
        predicted: predicted classes, (rows,).
        truth: true classes, (rows,).
        names: names of all classes.

    Returns:
        `by_class`, the accuracy on each class that occurs; `balanced_accuracy`, their mean; `matthews`, the correlation
        of predicted and true classes, -1 to 1 (0 if one of both never varies); for two classes `f1` of the second one
        (0 if it is neither predicted nor true); and `most_frequent`, the name of the largest class and its share of the
        examples, which is the accuracy of always predicting it.
    """
    from sklearn.metrics import f1_score, matthews_corrcoef

    sizes = np.bincount(truth, minlength=len(names))
    correct = np.bincount(truth[predicted == truth], minlength=len(names))
    there = np.flatnonzero(sizes)
    shares, largest = correct[there] / sizes[there], int(sizes.argmax())
    return {
        "balanced_accuracy": float(shares.mean()),
        "matthews": float(matthews_corrcoef(truth, predicted)),
        **({"f1": float(f1_score(truth, predicted, zero_division=0))} if len(names) == 2 else {}),
        "most_frequent": {"name": names[largest], "share": float(sizes[largest] / len(truth))},
        "by_class": {names[i]: float(share) for i, share in zip(there.tolist(), shares, strict=True)},
    }


def measure_numbers(predicted: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Measure predictions (rows,) against labels (rows,), in the labels' unit.

    Returns:
        `mae`, `rmse`, `r2` (against the mean of these labels), `pearson` and `spearman`. A value is None if it is not
        defined: for fewer than two examples, or if all numbers are equal.
    """
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    varies = len(truth) > 1 and bool(np.ptp(truth) > 0)
    related = varies and bool(np.ptp(predicted) > 0)
    return {
        "mae": float(mean_absolute_error(truth, predicted)),
        "rmse": float(root_mean_squared_error(truth, predicted)),
        "r2": float(r2_score(truth, predicted)) if varies else None,
        "pearson": float(pearsonr(truth, predicted).statistic) if related else None,
        "spearman": float(spearmanr(truth, predicted).statistic) if related else None,
    }


def measure_labels(scores: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Measure logits (rows, labels) against the true labels; a label is predicted from logit 0 on.

    Args:
        scores: logits, (rows, labels).
        truth: the labels that examples have, bool (rows, labels).
        names: names of the labels.

    Returns:
        `micro_f1`, `macro_f1`, `exact` (share of examples with all labels right); `average_precision`, the mean over
            the
        labels that some example has, and `micro_average_precision`, over all decisions; and `by_label`, the F1 of each.
            A
        label that is neither predicted nor true has an F1 of 0.
    """
    from sklearn.metrics import accuracy_score, average_precision_score, f1_score

    predicted = scores >= 0
    by_label = f1_score(truth, predicted, average=None, zero_division=0)
    occurring = truth.any(0)
    with warnings.catch_warnings(action="ignore"):  # undefined precision is left out below
        precision = average_precision_score(truth[:, occurring], scores[:, occurring], average=None)
        micro = average_precision_score(truth, scores, average="micro")
    return {
        "micro_f1": float(f1_score(truth, predicted, average="micro", zero_division=0)),
        "macro_f1": float(np.mean(by_label)),
        "exact": float(accuracy_score(truth, predicted)),
        "average_precision": float(np.mean(precision)) if occurring.any() else None,
        "micro_average_precision": float(micro) if occurring.any() else None,
        "by_label": {name: float(value) for name, value in zip(names, by_label, strict=True)},
    }

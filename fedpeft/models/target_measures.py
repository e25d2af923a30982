"""What is told of classes, of numbers, and of several labels a row, on all rows together: by scikit-learn and scipy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np


def measure_classes(said: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Of predicted classes (rows,) and true ones.

    Returns:
        `by_class`, the share of each class's rows that is found, of the classes that have some; `balanced_accuracy`,
        their mean; and `most_frequent`, the name of the largest class and its share of the rows: what who says nothing
        else has.
    """
    sizes = np.bincount(truth, minlength=len(names))
    found = np.bincount(truth[said == truth], minlength=len(names))
    there = np.flatnonzero(sizes)
    shares, largest = found[there] / sizes[there], int(sizes.argmax())
    return {
        "balanced_accuracy": float(shares.mean()),
        "most_frequent": {"name": names[largest], "share": float(sizes[largest] / len(truth))},
        "by_class": {names[i]: float(share) for i, share in zip(there.tolist(), shares, strict=True)},
    }


def measure_numbers(said: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Of predictions (rows,) and labels (rows,), in the labels' unit.

    Returns:
        `mae`, `rmse`, `r2` (against the mean of these labels), `pearson` and `spearman`; None where it is not defined:
        of fewer than two rows, or of numbers that are all equal.
    """
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    varies = len(truth) > 1 and bool(np.ptp(truth) > 0)
    related = varies and bool(np.ptp(said) > 0)
    return {
        "mae": float(mean_absolute_error(truth, said)),
        "rmse": float(root_mean_squared_error(truth, said)),
        "r2": float(r2_score(truth, said)) if varies else None,
        "pearson": float(pearsonr(truth, said).statistic) if related else None,
        "spearman": float(spearmanr(truth, said).statistic) if related else None,
    }


def measure_labels(scores: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Of logits (rows, labels) and which labels rows have, bool (rows, labels); a label is said from logit 0 on.

    Returns:
        `micro_f1`, `macro_f1`, `exact` (rows with all labels right); `average_precision`, the mean over the labels that
        some row has, and `micro_average_precision`, over all decisions; and `by_label`, the F1 of each. A label that
        is neither said nor there has an F1 of 0.
    """
    from sklearn.metrics import accuracy_score, average_precision_score, f1_score

    said = scores >= 0
    by_label = f1_score(truth, said, average=None, zero_division=0)
    occurring = truth.any(0)
    with warnings.catch_warnings(action="ignore"):  # of precision where nothing is there, which is left out below
        precision = average_precision_score(truth[:, occurring], scores[:, occurring], average=None)
        micro = average_precision_score(truth, scores, average="micro")
    return {
        "micro_f1": float(f1_score(truth, said, average="micro", zero_division=0)),
        "macro_f1": float(np.mean(by_label)),
        "exact": float(accuracy_score(truth, said)),
        "average_precision": float(np.mean(precision)) if occurring.any() else None,
        "micro_average_precision": float(micro) if occurring.any() else None,
        "by_label": {name: float(value) for name, value in zip(names, by_label, strict=True)},
    }

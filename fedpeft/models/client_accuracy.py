"""Accuracy per client: the accuracy on test examples, weighted by the client's mix of classes.

    a_k = sum_y p_k(y) a(y)

a(y) is the accuracy on the scored examples of class y. p_k(y) is the share of class y among client k's examples of
scored classes. A client without examples of scored classes is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

TENTH = 10
"""One client in TENTH counts as worst; the number is rounded down, but at least one."""


def compute_client_accuracies(
    right: NDArray[Any], labels: NDArray[np.int64], held: NDArray[Any]
) -> NDArray[np.float64]:
    """Return a_k of the clients that have one, ascending, (at most clients,).

    Args:
        right: whether each scored example is right, 0 or 1, (rows,).
        labels: classes of the scored examples, (rows,).
        held: number of examples of each class that each client has, (clients, classes).
    """
    classes = held.shape[1]
    class_rows = np.bincount(labels, minlength=classes)
    class_right = np.bincount(labels, right, classes)
    known = held * (class_rows > 0)
    shares = known / np.maximum(known.sum(1, keepdims=True), 1)
    accuracies = (shares * (class_right / np.maximum(class_rows, 1))).sum(1)
    return np.sort(accuracies[known.sum(1) > 0])


def compute_worst_tenth(accuracies: Sequence[float] | NDArray[np.float64]) -> float:
    """Compute the mean accuracy of the worst tenth of the clients; NaN without clients."""
    worst = sorted(accuracies)[: max(1, len(accuracies) // TENTH)]
    return float(np.mean(worst)) if worst else float("nan")

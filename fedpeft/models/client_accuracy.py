"""How a model serves each client: its accuracy on scored rows with the client's mix of classes.

    a_k = sum_y p_k(y) a(y)

a(y) is the accuracy on the scored rows of class y, p_k(y) the share of class y among client k's rows of scored classes.
Of a client that has none of these nothing is known, and it is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

TENTH = 10
"""One client in so many is among the worst; rounded down, but at least one is."""


def compute_client_accuracies(
    right: NDArray[Any], labels: NDArray[np.int64], held: NDArray[Any]
) -> NDArray[np.float64]:
    """a_k of the clients that have one, ascending, (at most clients,).

    Args:
        right: of scored rows, 0 or 1, (rows,).
        labels: their classes, (rows,).
        held: rows of each class that each client has, (clients, classes).
    """
    classes = held.shape[1]
    rows_C = np.bincount(labels, minlength=classes)
    right_C = np.bincount(labels, right, classes)
    known_KC = held * (rows_C > 0)
    shares_KC = known_KC / np.maximum(known_KC.sum(1, keepdims=True), 1)
    accuracy_K = (shares_KC * (right_C / np.maximum(rows_C, 1))).sum(1)
    return np.sort(accuracy_K[known_KC.sum(1) > 0])


def compute_worst_tenth(accuracies: Sequence[float] | NDArray[np.float64]) -> float:
    """Mean accuracy of the tenth of the clients that is served worst; not-a-number where there are none."""
    worst = sorted(accuracies)[: max(1, len(accuracies) // TENTH)]
    return float(np.mean(worst)) if worst else float("nan")

"""How models do on the clients' own held-out rows.

Clients' own models: each client counts equally, however many rows it has. The global model: each prediction does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.communication.messages import Report

HELD_OUT = 0.2
"""Share of each client's rows that it is evaluated on and does not train on, where clients have models of their own."""

WORST = 0.1
"""The share of clients that `worst_accuracy` is a mean over; at least one client."""


@dataclass(frozen=True)
class OwnRows:
    """Mean loss and accuracy over the clients that have held-out rows, and mean accuracy of the worst of them.

    `pooled_loss` and `pooled_accuracy` are means over all predictions.
    """

    loss: float
    accuracy: float
    worst_accuracy: float
    clients: int
    pooled_loss: float
    pooled_accuracy: float


def own_rows(reports: Sequence[Report]) -> OwnRows:
    """The summary of the clients' reports; 0 clients and not-a-number where nobody has held-out rows."""
    heard = [r for r in reports if r.count > 0]
    if not heard:
        return OwnRows(math.nan, math.nan, math.nan, 0, math.nan, math.nan)
    accuracies = sorted(r.correct / r.count for r in heard)
    worst = accuracies[: max(1, round(WORST * len(heard)))]
    return OwnRows(
        sum(r.loss for r in heard) / len(heard),
        sum(accuracies) / len(heard),
        sum(worst) / len(worst),
        len(heard),
        sum(r.loss * r.count for r in heard) / sum(r.count for r in heard),
        sum(r.correct for r in heard) / sum(r.count for r in heard),
    )

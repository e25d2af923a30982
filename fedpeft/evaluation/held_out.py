"""Held-out rows: loss, and what goes with it, of a finished model."""

from __future__ import annotations

import math
from collections.abc import Callable

from fedpeft.data.examples import Examples
from fedpeft.models import scoring
from fedpeft.models.task import FederatedModel, Task

Measures = dict[str, float]
"""Numbers by name."""


def held_out(
    model: FederatedModel, task: Task, examples: Examples, advance: Callable[[int], object] = lambda _: None
) -> Measures:
    """The loss per prediction in nats; and perplexity, or accuracy where a row is one prediction."""
    loss = correct = count = 0.0
    for rows in scoring.score_batches(examples):
        scores = scoring.score(model, task, examples.batch(rows))
        loss += float(scores.loss.astype(float).sum())
        correct += float(scores.correct.astype(float).sum())
        count += float(scores.count.astype(float).sum())
        advance(len(rows))
    mean = loss / count
    if task.metric == "perplexity":
        return {"loss": mean, "perplexity": math.exp(min(mean, 700.0))}
    return {"loss": mean, "accuracy": correct / count}

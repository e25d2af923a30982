"""Loss and metrics of a finished model on test examples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedpeft.data.examples import Examples
from fedpeft.models import scoring
from fedpeft.models.task import FederatedModel, Task
from fedpeft.reporting.observer import compute_perplexity

Measures = dict[str, float]
"""Numbers by name."""


def evaluate_held_out(
    model: FederatedModel,
    task: Task,
    examples: Examples,
    advance: Callable[[int], object] = lambda _: None,
    labels: np.ndarray | None = None,
) -> Measures:
    """Return the loss per prediction, in nats except for numbers, and perplexity or the task's headline metric.

    With the examples' `labels`, the result includes measures over all examples together (`Task.measures`).
    """
    loss = correct = count = 0.0
    said: list[np.ndarray] = []
    batches = scoring.score_batches(examples)
    for rows in batches:
        scores, outputs = scoring.score_batch(model, task, examples.batch(rows))
        said.append(outputs)
        loss += float(scores.loss.astype(float).sum())
        correct += float(scores.correct.astype(float).sum())
        count += float(scores.count.astype(float).sum())
        advance(len(rows))
    mean = loss / count
    if task.metric == "perplexity":
        return {"loss": mean, "perplexity": compute_perplexity(mean)}
    found = {"loss": mean, task.metric: correct / count}
    if labels is None or not task.targets:
        return found
    order = np.argsort(np.concatenate(batches), kind="stable")
    told = scoring.compute_measures(task, np.concatenate(said)[order], labels, [""] * said[0].shape[1])
    return found | {name: value for name, value in told.items() if isinstance(value, float)}

"""Scores of a finished model, computed on fixed batches, so that the same files give the same numbers."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from fedpeft.data.examples import Batch, Examples, batch_by_length
from fedpeft.data.rows import Rows
from fedpeft.errors import ConfigError
from fedpeft.models.pair_task import compute_sides
from fedpeft.models.ranking import PairSides
from fedpeft.models.task import FederatedModel, Task
from fedpeft.models.tasks.classification import RowTask
from fedpeft.parts import name_of

SCORE_BATCH = 16
"""Examples per batch of the final score."""


@dataclass(frozen=True)
class Scores:
    """Scores per example, in the order of the examples.

    Attributes:
        loss: loss summed over predictions.
        correct: number of correct predictions.
        count: number of predictions.
        predicted: the predicted class; the number itself for regression; -1 for language.
        confidence: confidence of the predicted class; 0 for regression and language.
        scaled: the confidence after temperature scaling.
    """

    loss: np.ndarray
    correct: np.ndarray
    count: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    scaled: np.ndarray


def score_batches(examples: Examples) -> list[np.ndarray]:
    """Return the fixed batches of the final score, as indices of examples."""
    return batch_by_length(examples.lengths, SCORE_BATCH)


def move_batch(batch: Batch, model: FederatedModel) -> Batch:
    """Move the batch to the model's device."""
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}


def compute_logits(model: FederatedModel, batch: Batch) -> Tensor:
    """Compute a classifier's logits (rows, classes) in fp64, in the batch's order."""
    with torch.inference_mode():
        logits: Tensor = model(move_batch(batch, model)).double().cpu()
    return logits


def score(model: FederatedModel, task: Task, batch: Batch, temperature: float = 1.0) -> Scores:
    """Score one batch, in its order."""
    return score_batch(model, task, batch, temperature)[0]


def score_batch(model: FederatedModel, task: Task, batch: Batch, temperature: float = 1.0) -> tuple[Scores, np.ndarray]:
    """Score one batch, in its order, and return the outputs for whole examples: (rows, outputs), or (rows, 0)."""
    batch = move_batch(batch, model)
    with torch.inference_mode():
        if not task.targets:
            losses = task.row_losses(model, batch)
            outputs = losses.sums.new_zeros(len(losses.sums), 0)
        else:
            outputs = model(batch)
            losses = task.losses(outputs, batch)
        confidence = scaled = torch.zeros_like(losses.sums)
        predicted = torch.full((len(confidence),), -1)
        if task.targets == "classes":
            confidence, predicted = functional.softmax(outputs, -1).max(-1)
            scaled = functional.softmax(outputs / temperature, -1).amax(-1)
        elif task.targets == "numbers":
            predicted = task.values(outputs[:, 0].double())
    arrays = (losses.sums, losses.correct, losses.counts, predicted, confidence, scaled)
    return Scores(*(a.cpu().numpy() for a in arrays)), outputs.double().cpu().numpy()


def compute_measures(
    task: Task, outputs: np.ndarray, labels: np.ndarray | None, names: Sequence[str] | None
) -> dict[str, Any]:
    """Compute a task's measures over all examples from outputs (rows, outputs), and the number of examples.

    Returns:
        Values for JSON; empty if there are no labels, or the task has no such outputs.

    Raises:
        ConfigError: a task of a user's own returns something that JSON can't represent.
    """
    if labels is None or not len(labels) or not task.targets:
        return {}
    measures = task.measures(outputs, labels, names or ())
    for name, value in measures.items():
        if not _is_plain(value):
            raise ConfigError(
                f"FP1211 the task {name_of(type(task))}: measures must return numbers and texts, or lists and dicts of "
                f"them, and its {name!r} is a {type(value).__name__}"
            )
    return {"rows": len(labels), **measures}


def check_task_outputs(task: RowTask, test: Rows, names: Sequence[str]) -> None:
    """Refuse illegal losses and measures of a user's own task, on made-up outputs for the test set.

    Raises:
        ConfigError: names the fault.
    """
    outputs = np.random.default_rng(0).standard_normal((len(test), len(names)))
    logits = torch.from_numpy(outputs).float().requires_grad_()
    losses = task.losses(logits, {"labels": torch.as_tensor(task.labels(test))})
    who = f"the task {name_of(type(task))}:"
    for name, values in vars(losses).items():
        if values.shape != (len(test),) or not values.isfinite().all():
            seen = f"shape {tuple(values.shape)}" if values.shape != (len(test),) else "NaN or infinity"
            raise ConfigError(
                f"FP1212 {who} {name} of its losses must be a finite number for each example, and for {len(test)} it "
                f"is {seen}"
            )
    if not losses.sums.requires_grad:
        raise ConfigError(
            f"FP1213 {who} sums of its losses has no gradient, so nothing can be learned; remove detach()"
        )
    if task.targets == "classes" and not ((losses.correct == 0) | (losses.correct == 1)).all():
        raise ConfigError(
            f"FP1214 {who} correct of its losses must be 0 or 1 for each example, whether its class is right"
        )
    compute_measures(task, outputs, test.labels, names)


def _is_plain(value: Any) -> bool:
    """Return whether JSON can represent the value; a tensor or array of one number counts as that number."""
    if isinstance(value, dict | list | tuple):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    if isinstance(value, np.ndarray | Tensor):
        return bool(np.prod(value.shape) == 1)
    return value is None or isinstance(value, str | numbers.Number | np.generic)


def score_together(model: FederatedModel, task: Task, examples: Examples) -> tuple[Scores, PairSides]:
    """Score all examples of a task on pairs, each among the others, and return the sides; in the examples' order."""
    batches = score_batches(examples)
    unsorted = compute_sides(model, (move_batch(examples.batch(rows), model) for rows in batches))
    place = torch.from_numpy(np.argsort(np.concatenate(batches), kind="stable"))
    sides = PairSides(unsorted.queries[place], unsorted.documents[place], unsorted.labels[place])
    both = torch.stack([sides.queries, sides.documents], 1)
    losses = task.losses(both, {"labels": sides.labels[:, None]})
    none = np.zeros(len(examples))
    loss, correct, count = (t.numpy() for t in (losses.sums, losses.correct, losses.counts))
    return Scores(loss, correct, count, none - 1, none, none), sides

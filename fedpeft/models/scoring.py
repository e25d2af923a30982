"""Scores of a finished model on rows: fixed batches, so that the same files give the same numbers."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
"""Rows per batch of the final score."""


@dataclass(frozen=True)
class Scores:
    """Per row, in the order of the rows: loss summed over predictions, correct predictions, predictions; class and
    confidence of the prediction (-1 and 0 for language; the number itself and 0 for regression), and its confidence
    after temperature scaling."""

    loss: np.ndarray
    correct: np.ndarray
    count: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    scaled: np.ndarray


def score_batches(examples: Examples) -> list[np.ndarray]:
    """The fixed batches of the final score."""
    return batch_by_length(examples.lengths, SCORE_BATCH)


def move_batch(batch: Batch, model: FederatedModel) -> Batch:
    """The batch where the model is."""
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}


def compute_logits(model: FederatedModel, batch: Batch) -> Tensor:
    """Of a classifier, (rows, classes) in fp64, rows in the batch's order."""
    with torch.inference_mode():
        found: Tensor = model(move_batch(batch, model)).double().cpu()
    return found


def score(model: FederatedModel, task: Task, batch: Batch, temperature: float = 1.0) -> Scores:
    """Scores of one batch, rows in its order."""
    return score_batch(model, task, batch, temperature)[0]


def score_batch(model: FederatedModel, task: Task, batch: Batch, temperature: float = 1.0) -> tuple[Scores, np.ndarray]:
    """Scores of one batch, rows in its order, and what the model said of whole rows: (rows, outputs), or (rows, 0)."""
    batch = move_batch(batch, model)
    with torch.inference_mode():
        if not task.targets:
            losses = task.row_losses(model, batch)
            said = losses.sums.new_zeros(len(losses.sums), 0)
        else:
            said = model(batch)
            losses = task.losses(said, batch)
        confidence = scaled = torch.zeros_like(losses.sums)
        predicted = torch.full((len(confidence),), -1)
        if task.targets == "classes":
            confidence, predicted = F.softmax(said, -1).max(-1)
            scaled = F.softmax(said / temperature, -1).amax(-1)
        elif task.targets == "numbers":
            predicted = task.values(said[:, 0].double())
    arrays = (losses.sums, losses.correct, losses.counts, predicted, confidence, scaled)
    return Scores(*(a.cpu().numpy() for a in arrays)), said.double().cpu().numpy()


def compute_measures(
    task: Task, outputs: np.ndarray, labels: np.ndarray | None, names: Sequence[str] | None
) -> dict[str, Any]:
    """How many rows there are, and what a task tells of all together, given outputs (rows, outputs); or nothing.

    Raises:
        ConfigError: it is nothing that JSON holds, as of a task of a user's own.
    """
    if labels is None or not len(labels) or not task.targets:
        return {}
    told = task.measures(outputs, labels, names or ())
    for name, value in told.items():
        if not _is_plain(value):
            raise ConfigError(
                f"FP1211 the task {name_of(type(task))}: measures has to give numbers and texts, or lists and dicts of "
                f"them, and its {name!r} is a {type(value).__name__}"
            )
    return {"rows": len(labels), **told}


def check_task_outputs(task: RowTask, test: Rows, names: Sequence[str]) -> None:
    """Refuse losses and measures of a user's own task that are none, on made-up outputs for the test rows.

    Raises:
        ConfigError: says which.
    """
    said = np.random.default_rng(0).standard_normal((len(test), len(names)))
    logits = torch.from_numpy(said).float().requires_grad_()
    losses = task.losses(logits, {"labels": torch.as_tensor(task.labels(test))})
    who = f"the task {name_of(type(task))}:"
    for name, told in vars(losses).items():
        if told.shape != (len(test),) or not told.isfinite().all():
            seen = f"shape {tuple(told.shape)}" if told.shape != (len(test),) else "NaN or infinity"
            raise ConfigError(
                f"FP1212 {who} {name} of its losses has to be a finite number for each row, and of {len(test)} it is "
                f"{seen}"
            )
    if not losses.sums.requires_grad:
        raise ConfigError(
            f"FP1213 {who} sums of its losses has no gradient, so that nothing can be learned; leave out detach()"
        )
    if task.targets == "classes" and not ((losses.correct == 0) | (losses.correct == 1)).all():
        raise ConfigError(
            f"FP1214 {who} correct of its losses has to be 0 or 1 for each row, whether its class is right"
        )
    compute_measures(task, said, test.labels, names)


def _is_plain(value: Any) -> bool:
    """Whether JSON holds it, where a tensor or array of one number is that number."""
    if isinstance(value, dict | list | tuple):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    if isinstance(value, np.ndarray | Tensor):
        return bool(np.prod(value.shape) == 1)
    return value is None or isinstance(value, str | numbers.Number | np.generic)


def score_together(model: FederatedModel, task: Task, examples: Examples) -> tuple[Scores, PairSides]:
    """Scores of all rows, each among the others, and what they come of, for tasks of pairs; in the examples' order."""
    batches = score_batches(examples)
    found = compute_sides(model, (move_batch(examples.batch(rows), model) for rows in batches))
    place = torch.from_numpy(np.argsort(np.concatenate(batches), kind="stable"))
    sides = PairSides(found.queries[place], found.documents[place], found.labels[place])
    both = torch.stack([sides.queries, sides.documents], 1)
    losses = task.losses(both, {"labels": sides.labels[:, None]})
    none = np.zeros(len(examples))
    loss, correct, count = (t.numpy() for t in (losses.sums, losses.correct, losses.counts))
    return Scores(loss, correct, count, none - 1, none, none), sides

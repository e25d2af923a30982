"""Scores of a finished model on rows: fixed batches, so that the same files give the same numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpeft.data.examples import Batch, Examples, length_sorted_batches
from fedpeft.models.pair_task import sides_of
from fedpeft.models.ranking import Sides
from fedpeft.models.task import FederatedModel, Task

SCORE_BATCH = 16
"""Rows per batch of the final score."""


@dataclass(frozen=True)
class Scores:
    """Per row, in the order of the rows: loss summed over predictions, correct predictions, predictions; class and
    confidence of the prediction (-1 and 0 for language), and its confidence after temperature scaling."""

    loss: np.ndarray
    correct: np.ndarray
    count: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    scaled: np.ndarray


def score_batches(examples: Examples) -> list[np.ndarray]:
    """The fixed batches of the final score."""
    return length_sorted_batches(examples.lengths, SCORE_BATCH)


def placed(batch: Batch, model: FederatedModel) -> Batch:
    """The batch where the model is."""
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}


def logits(model: FederatedModel, batch: Batch) -> Tensor:
    """Of a classifier, (rows, classes) in fp64, rows in the batch's order."""
    with torch.inference_mode():
        found: Tensor = model(placed(batch, model)).double().cpu()
    return found


def score(model: FederatedModel, task: Task, batch: Batch, temperature: float = 1.0) -> Scores:
    """Scores of one batch, rows in its order."""
    batch = placed(batch, model)
    with torch.inference_mode():
        if batch["labels"].ndim == 1:
            logits = model(batch)
            losses = task.losses(logits, batch)
            confidence, predicted = F.softmax(logits, -1).max(-1)
            scaled = F.softmax(logits / temperature, -1).amax(-1)
        else:
            losses = task.row_losses(model, batch)
            confidence = scaled = torch.zeros_like(losses.sums)
            predicted = torch.full((len(confidence),), -1)
    arrays = (losses.sums, losses.correct, losses.counts, predicted, confidence, scaled)
    return Scores(*(a.cpu().numpy() for a in arrays))


def score_together(model: FederatedModel, task: Task, examples: Examples) -> tuple[Scores, Sides]:
    """Scores of all rows, each among the others, and what they come of, for tasks of pairs; in the examples' order."""
    batches = score_batches(examples)
    found = sides_of(model, (placed(examples.batch(rows), model) for rows in batches))
    place = torch.from_numpy(np.argsort(np.concatenate(batches), kind="stable"))
    sides = Sides(found.queries[place], found.documents[place], found.labels[place])
    both = torch.stack([sides.queries, sides.documents], 1)
    losses = task.losses(both, {"labels": sides.labels[:, None]})
    none = np.zeros(len(examples))
    loss, correct, count = (t.numpy() for t in (losses.sums, losses.correct, losses.counts))
    return Scores(loss, correct, count, none - 1, none, none), sides

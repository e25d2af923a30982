"""Membership inference by loss: how well a row's loss tells whether some client has trained on it.

Yeom et al., arXiv 1709.01604: a row with a low loss is called a member. Per client, the score is the area under the ROC
curve, members being the client's training rows and non-members rows that nobody had; 0.5 is guessing. Non-members are
weighted to the client's mix of classes, because otherwise telling classes apart would pass for telling members.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from fedpeft import seeds
from fedpeft.data.cached_rows import cached_examples
from fedpeft.models import scoring
from fedpeft.models.quantized import quantize
from fedpeft.peft import saved_adapter
from fedpeft.simulation.simulation import Simulation

MEMBERS = 1500
"""At most about this many training rows are scored: whole clients, drawn at random."""


@dataclass(frozen=True)
class Membership:
    """Areas under the curve, by client: (clients,)."""

    areas: np.ndarray

    @property
    def mean(self) -> float:
        """Over clients."""
        return float(self.areas.mean())

    @property
    def worst(self) -> float:
        """Of the client that gives most away."""
        return float(self.areas.max())


def area(members: np.ndarray, others: np.ndarray, weights: np.ndarray) -> float:
    """Chance that a member has a lower loss than another row; `weights` are the other rows'."""
    inside = np.r_[np.ones(len(members)), np.zeros(len(others))]
    return float(roc_auc_score(inside, -np.r_[members, others], sample_weight=np.r_[np.ones(len(members)), weights]))


def membership(simulation: Simulation) -> Membership:
    """Attack the finished adapter in the simulation's folder."""
    shards = _some_clients(simulation)
    others = simulation.rows.validation
    rows = np.concatenate([*shards, others])
    examples = cached_examples(simulation.workers.work.data_key)
    base = simulation.setup.task.base(simulation.setup.model_directory, torch.float32)
    quantize(base, simulation.setup.method.base_precision)
    model = saved_adapter.load(simulation.folder, simulation.setup.task, base, simulation.setup.facts.classes)
    losses = np.zeros(len(examples))
    lengths = examples.lengths[rows]
    batches = np.array_split(np.argsort(-lengths, kind="stable"), max(1, len(rows) // 32))
    simulation.observer.phase("attack: membership inference, rows scored", len(batches))
    for index in batches:
        scores = scoring.score(model, simulation.setup.task, examples.batch(rows[index]))
        losses[rows[index]] = scores.loss / np.maximum(scores.count, 1)
        simulation.observer.advance()
    labels = simulation.rows.all.classes
    areas = []
    for shard in shards:
        weights = np.ones(len(others)) if labels is None else _weights(labels[shard], labels[others])
        if weights.sum() > 0:
            areas.append(area(losses[shard], losses[others], weights))
    return Membership(np.array(areas))


def _some_clients(simulation: Simulation) -> list[np.ndarray]:
    order = seeds.generator(simulation.config.seed, "membership").permutation(simulation.clients)
    shards: list[np.ndarray] = []
    while len(shards) < len(order) and sum(map(len, shards)) < MEMBERS:
        shards.append(simulation.training_rows(int(order[len(shards)])))
    return shards


def _weights(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Weights (others,) that give the other rows the members' mix of classes."""
    classes = int(max(members.max(), others.max())) + 1
    share, held = np.bincount(members, minlength=classes), np.bincount(others, minlength=classes)
    weights: np.ndarray = (share / np.maximum(held, 1))[others]
    return weights

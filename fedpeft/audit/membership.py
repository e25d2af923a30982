"""Membership inference by loss: how well an example's loss reveals that some client trained on it.

Yeom et al., arXiv 1709.01604, call an example with a low loss a member. A client's score is the area under the ROC
curve: members are its training examples, and non-members are examples that no client had. A score of 0.5 is guessing.
Non-members are weighted to the client's mix of classes; otherwise, a difference between classes would look like one
between members and others. Members of a class without non-members are left out.

By chance alone, the worst of many clients with few examples is above 0.5. To measure this, losses are shuffled among
all examples of a class, which hides every member, and the worst client is computed again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedpeft.data.cached_rows import load_cached_examples
from fedpeft.machine import seeds
from fedpeft.models import scoring
from fedpeft.models.quantized_base import quantize
from fedpeft.peft import saved_adapter
from fedpeft.simulation.simulation import Simulation

MEMBERS = 1500
"""Approximate largest number of training examples that are scored: whole clients, drawn at random."""

SHUFFLES = 100
"""Number of shuffles; their mean worst client is accurate to about 0.002."""


@dataclass(frozen=True)
class Membership:
    """Result of the attack; not-a-number if no member's class has a non-member.

    Attributes:
        areas: area under the curve of each client with members to compare, (at most clients,).
        by_chance: the largest area expected if no client revealed anything, the mean over shuffles.
        members: number of clients' examples.
        left_out: number of them whose class has no non-member.
        high_by_chance: the largest area that chance alone exceeds in 5 % of shuffles.
    """

    areas: np.ndarray
    by_chance: float
    members: int
    left_out: int
    high_by_chance: float = float("nan")

    @property
    def mean(self) -> float:
        """Mean area over clients."""
        return float(self.areas.mean()) if len(self.areas) else float("nan")

    @property
    def worst_area(self) -> float:
        """Area of the client that reveals most."""
        return float(self.areas.max()) if len(self.areas) else float("nan")

    @property
    def note(self) -> str:
        """Sentence about members that were left out; empty: none."""
        if not self.left_out:
            return ""
        return f"{self.left_out:,} of {self.members:,} members left out: their class has no non-member"


def compute_auc(members: np.ndarray, others: np.ndarray, weights: np.ndarray) -> float:
    """Return the probability that a member has a lower loss than another example; equal losses count half.

    `weights` (others,) are those of the other examples.
    """
    order = np.argsort(others)
    lower = np.r_[0.0, np.cumsum(weights[order])]
    below, up_to = (lower[np.searchsorted(others[order], members, side)] for side in ("left", "right"))
    return float(1 - (below + up_to).mean() / 2 / lower[-1])


def measure_membership(losses: np.ndarray, labels: np.ndarray, clients: np.ndarray, seed: int) -> Membership:
    """Measure how well losses reveal the members of each client.

    Args:
        losses: losses of all examples, (rows,).
        labels: their classes, (rows,); all equal if there are none.
        clients: the client of each example, (rows,); -1: none.
        seed: seed of the shuffles.
    """
    others = clients < 0
    known = others | np.isin(labels, labels[others])
    losses, labels, clients, others = losses[known], labels[known], clients[known], others[known]
    groups = [clients == client for client in np.unique(clients[~others])]
    weights = [_compute_weights(labels[group], labels[others]) for group in groups]

    def compute_areas(losses: np.ndarray) -> np.ndarray:
        pairs = zip(groups, weights, strict=True)
        return np.array([compute_auc(losses[group], losses[others], weight) for group, weight in pairs])

    generator = seeds.create_generator(seed, "membership by chance")
    by_class = np.argsort(labels, kind="stable")
    worst, shuffled = [], np.empty_like(losses)
    for _ in range(SHUFFLES if groups else 0):
        shuffled[by_class] = losses[np.lexsort((generator.random(len(losses)), labels))]
        worst.append(compute_areas(shuffled).max())
    by_chance = float(np.mean(worst)) if worst else float("nan")
    members = int((~others).sum() + (~known).sum())
    high = float(np.quantile(worst, 0.95)) if worst else float("nan")
    return Membership(compute_areas(losses), by_chance, members, int((~known).sum()), high)


def attack_membership(simulation: Simulation) -> Membership:
    """Attack the finished adapter in the simulation's folder."""
    shards = _select_clients(simulation)
    others = simulation.rows.validation
    rows = np.concatenate([*shards, others])
    examples = load_cached_examples(simulation.workers.work.data_key)
    base = simulation.setup.task.base(simulation.setup.model_directory, torch.float32)
    quantize(base, simulation.setup.method.base_precision)
    model = saved_adapter.load(simulation.folder, simulation.setup.task, base, simulation.setup.facts.classes)
    losses = np.zeros(len(examples))
    lengths = examples.lengths[rows]
    batches = np.array_split(np.argsort(-lengths, kind="stable"), max(1, len(rows) // 32))
    simulation.observer.phase("attack: membership inference, batches scored", len(batches))
    for index in batches:
        scores = scoring.score(model, simulation.setup.task, examples.batch(rows[index]))
        losses[rows[index]] = scores.loss / np.maximum(scores.count, 1)
        simulation.observer.advance()
    labels = simulation.rows.all.classes
    labels = np.zeros(len(examples), np.int64) if labels is None else labels
    clients = np.repeat([*range(len(shards)), -1], [*map(len, shards), len(others)])
    return measure_membership(losses[rows], labels[rows], clients, simulation.config.seed)


def _select_clients(simulation: Simulation) -> list[np.ndarray]:
    order = seeds.create_generator(simulation.config.seed, "membership").permutation(simulation.clients)
    shards: list[np.ndarray] = []
    while len(shards) < len(order) and sum(map(len, shards)) < MEMBERS:
        shards.append(simulation.select_training_rows(int(order[len(shards)])))
    return shards


def _compute_weights(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return weights (others,) that give the other examples the members' mix of classes."""
    classes = int(max(members.max(), others.max())) + 1
    share, held = np.bincount(members, minlength=classes), np.bincount(others, minlength=classes)
    weights: np.ndarray = (share / np.maximum(held, 1))[others]
    return weights

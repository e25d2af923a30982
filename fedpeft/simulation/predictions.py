"""The predictions in a run's folder: the scores of every test example, and the classes that each client holds."""

from __future__ import annotations

import numpy as np

from fedpeft.models.scoring import Scores
from fedpeft.reporting.records import Records
from fedpeft.simulation.simulation import Simulation

LISTED = 10_000
"""Number of clients, the first ones, whose classes clients.npz contains."""


def save_predictions(simulation: Simulation, scores: Scores, records: Records) -> None:
    """Save scores per test example, and, as confidential as clients.jsonl, the classes that each client holds."""
    records.write_arrays("predictions.npz", **vars(scores))
    rows = simulation.rows
    train_labels, test_labels = rows.train.labels, rows.dataset.test.labels
    if (
        rows.train.targets == "classes"
        and train_labels is not None
        and test_labels is not None
        and rows.dataset.classes
    ):
        partition, classes = rows.partition, rows.dataset.classes
        shards = (train_labels[partition.shard(client)] for client in range(min(len(partition), LISTED)))
        labels = np.stack([np.bincount(shard, minlength=classes) for shard in shards])
        records.write_arrays("clients.npz", labels=labels, test_labels=test_labels)

"""The private probe: one noisy release of the frozen features, with the whole budget and no training.

A private federation that does not beat it was not worth its rounds. It is the start of the head
(`fedpeft.aggregation.heads`) at the run's epsilon and delta, on the run's own texts, without the examples that clients
hold out. It is the mean over a few draws of noise, as a single one may be lucky. Like the linear probe, only a
simulation can measure it: its draws do not count as releases of the run, and are not on its ledger.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fedpeft.aggregation.update import Fold
from fedpeft.parts.families import HEADS
from fedpeft.privacy.noise import RunKey
from fedpeft.simulation.simulation import Simulation

DRAWS = 5
"""Number of draws of noise."""


def score_private_probe(simulation: Simulation) -> float | None:
    """Return the probe's test accuracy; None: nothing is protected, there is no budget, or no head."""
    setup, rows, workers = simulation.setup, simulation.rows, simulation.workers
    protection = simulation.protection
    labels, truth = rows.all.labels, rows.dataset.test.labels
    if protection is None or protection.mechanism.epsilon is None or "head.weight" not in setup.start:
        return None
    if labels is None or truth is None or setup.task.targets != "classes":
        return None
    work = workers.work
    test = setup.tokenize_rows(rows.dataset.test, setup.tokens)
    workers.freeze(work.data_key, work.depth, "frozen features of the training set (kept for later runs)")
    workers.freeze(test, 0, "frozen features of the test set (kept for later runs)")
    held_out = work.store(test, 0).read_features(np.arange(len(truth))).double()
    train, classes = work.store(work.data_key, work.depth), setup.facts.classes
    head = setup.head if setup.head.bounded else HEADS.build("private_centroids")
    mechanism = replace(protection.mechanism, start=1.0)
    noise = mechanism.start_noise(replace(protection.exposure, start=True))
    assert noise is not None
    release = mechanism.start_release
    keys = [RunKey(protection.key.stream("private probe", draw).bytes(32)) for draw in range(DRAWS)]
    totals = [Fold() for _ in keys]
    for client in range(setup.clients):
        shard = simulation.select_training_rows(client)
        own = head.statistics(train.read_features(shard), torch.from_numpy(labels[shard]).long(), classes)
        for key, total in zip(keys, totals, strict=True):
            total.add(release.take(release.protect(own, noise, key, (0, client))), 1.0)
    accuracies = []
    for key, total in zip(keys, totals, strict=True):
        state = head.solve(release.finish(total.sums, noise, key, 0), held_out.shape[1], classes)
        logits = held_out @ state["head.weight"].T + state["head.bias"]
        accuracies.append(float((logits.argmax(1).numpy() == truth).mean()))
    return float(np.mean(accuracies))

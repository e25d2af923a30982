"""python -m experiments.privacy.start: what a private start gives without any training, over draws of its noise.

Every client adds its own noise (`dp_sgd`, whole budget for the start); accuracy and balanced accuracy on the test rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rich.console import Console

from fedpeft.aggregation.head_start import HEADS
from fedpeft.aggregation.update import Fold
from fedpeft.config import RunConfig
from fedpeft.privacy.accountant import noise_for
from fedpeft.privacy.mechanism import MECHANISMS
from fedpeft.privacy.noise import RunKey
from fedpeft.run.console import ConsoleObserver
from fedpeft.simulation.simulation import Simulation


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="reuters_r8")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--delta", type=float, default=1e-4)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--heads", nargs="+", default=["private_centroids", "private_ridge"])
    parser.add_argument("--epsilons", nargs="+", type=float, default=[8, 4, 2, 1])
    given = parser.parse_args()
    config = RunConfig(
        dataset=given.dataset, clients=given.clients, tokens=given.tokens, dtype=given.dtype, head="zero", workers=1
    )
    with TemporaryDirectory() as folder:
        simulation = Simulation(config, Path(folder), ConsoleObserver(Console(quiet=True)))
        setup, rows, workers = simulation.setup, simulation.rows, simulation.workers
        classes, parts = setup.facts.classes, []
        for data in (rows.all, rows.dataset.test):
            key = setup.tokenised(data, setup.tokens)
            workers.freeze(key, 0, "frozen features")
            assert data.labels is not None
            features = workers.work.store(key, 0).features(np.arange(len(data.labels))).double()
            parts.append((features, torch.from_numpy(np.asarray(data.labels)).long()))
        simulation.close()
    (train, labels), (test, truth) = parts
    shards = [rows.partition.shard(client) for client in range(given.clients)]
    mechanism = MECHANISMS.build("dp_sgd(epsilon=1)")
    print("| head | epsilon | accuracy | balanced accuracy | deviation over draws |\n|---|---:|---:|---:|---:|")
    for name in given.heads:
        head = HEADS.build(name)
        sums = [head.statistics(train[shard], labels[shard], classes) for shard in shards]
        for budget in [None, *given.epsilons]:
            noise = 0.0 if budget is None else noise_for(budget, given.delta, 1.0, 1)
            found = []
            for draw in range(given.draws if noise else 1):
                secret, total = RunKey(draw.to_bytes(32, "big")), Fold()
                for client, own in enumerate(sums):
                    total.add(mechanism.start_released(own, noise, secret, (0, client)), 1.0)
                state = head.solve(total.sums, test.shape[1], classes)
                right = ((test @ state["head.weight"].T + state["head.bias"]).argmax(1) == truth).double()
                by_class = [float(right[truth == label].mean()) for label in torch.unique(truth)]
                found.append((float(right.mean()), float(np.mean(by_class))))
            mean, deviation = np.mean(found, axis=0), np.std(found, axis=0)
            print(f"| {name} | {budget or 'none'} | {mean[0]:.3f} | {mean[1]:.3f} | {deviation[0]:.3f} |", flush=True)


if __name__ == "__main__":
    main()

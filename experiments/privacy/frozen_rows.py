"""Frozen features of examples, on the clients that a partition assigns them to."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedpeft.machine.terminal import Console
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig


@dataclass(frozen=True)
class FrozenRows:
    """Features (examples, width), fp64, and labels (examples,).

    Attributes:
        classes: number of classes.
        clients: features and labels of each client's training examples.
        test, truth: features and labels of the test examples.
    """

    classes: int
    clients: Sequence[tuple[Tensor, Tensor]]
    test: Tensor
    truth: Tensor

    @classmethod
    def from_arguments(cls, given: argparse.Namespace) -> FrozenRows:
        """Compute the features for a command's `--dataset`, `--clients`, `--tokens` and `--dtype`, default split.

        The features come from the last block, or from the method `--peft`; with `--pixels`, they are the images
        themselves.
        """
        named = {name: getattr(given, name) for name in ("dataset", "clients", "tokens", "dtype")}
        config = RunConfig(**named, peft=getattr(given, "peft", "linear_probe"), head="zero", workers=1)
        with TemporaryDirectory() as folder:
            simulation = Simulation(config, Path(folder), ConsoleObserver(Console(quiet=True)))
            setup, rows, workers = simulation.setup, simulation.rows, simulation.workers
            parts = []
            for data in (rows.all, rows.dataset.test):
                assert data.labels is not None
                if getattr(given, "pixels", False):
                    features = torch.from_numpy(np.asarray(data.inputs).reshape(len(data.labels), -1) / 255)
                else:
                    key = setup.tokenize_rows(data, setup.tokens)
                    workers.freeze(key, 0, "frozen features")
                    features = workers.work.store(key, 0).read_features(np.arange(len(data.labels))).double()
                parts.append((features, torch.from_numpy(np.asarray(data.labels)).long()))
            simulation.close()
        (features, labels), (test, truth) = parts
        shards = [rows.partition.shard(client) for client in range(given.clients)]
        return cls(setup.facts.classes, [(features[shard], labels[shard]) for shard in shards], test, truth)

    def compute_accuracies(self, weight: Tensor, bias: Tensor) -> tuple[float, float]:
        """Return a head's accuracy on the test examples, and the mean of its accuracies per class."""
        right = ((self.test @ weight.T + bias).argmax(1) == self.truth).double()
        by_class = [float(right[self.truth == label].mean()) for label in range(self.classes) if label in self.truth]
        return float(right.mean()), float(np.mean(by_class))

    def compute_loss(self, weight: Tensor, bias: Tensor) -> float:
        """Return a head's cross-entropy on the test examples, in nats."""
        return cross_entropy(self.test @ weight.T + bias, self.truth).item()

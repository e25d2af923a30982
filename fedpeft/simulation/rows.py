"""The rows of a simulation: a data set, the part of it that nobody trains on, and whose the others are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedpeft.config import RunConfig
from fedpeft.data.partition import PARTITIONS, PartitionStatistics, Shards
from fedpeft.data.rows import Dataset, Rows, joined, load_dataset, without_validation
from fedpeft.run.setup import DataFacts


@dataclass(frozen=True, eq=False)
class SimulatedRows:
    """All rows.

    Attributes:
        dataset: where they come from, with its test rows.
        train: the training rows that clients have.
        held: the training rows that nobody has: for validation.
        partition: which of `train` are whose.
    """

    dataset: Dataset
    train: Rows
    held: Rows
    partition: Shards

    @classmethod
    def of(cls, config: RunConfig, clients: int) -> SimulatedRows:
        """Those that a configuration describes, on `clients` clients; 0: one per owner.

        Raises:
            FedpeftError: they can't be fetched, used, or split so.
        """
        partitioner = PARTITIONS.build(config.partition)
        dataset = load_dataset(config.dataset)
        train, held = without_validation(dataset)
        return cls(dataset, train, held, partitioner.split(train, clients, config.seed))

    @property
    def facts(self) -> DataFacts:
        """What a setup needs to know of them."""
        return DataFacts.of(self.dataset, len(self.partition), judged=len(self.held) > 0)

    @cached_property
    def all(self) -> Rows:
        """The clients' rows, and after them those for validation."""
        return joined(self.train, self.held)

    @cached_property
    def validation(self) -> NDArray[np.int64]:
        """Which of `all` are for validation, (rows,)."""
        return np.arange(len(self.train), len(self.train) + len(self.held))

    @property
    def statistics(self) -> PartitionStatistics:
        """What the partition looks like."""
        return self.partition.statistics(self.train.labels, len(self.train))

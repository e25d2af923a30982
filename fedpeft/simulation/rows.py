"""The examples of a simulation: a dataset, its validation set, and the partition of the others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.partition import USUAL, NeedsClientCount, Partition, Partitioner, PartitionStatistics, Shards, split
from fedpeft.data.rows import Dataset, Rows, join_rows, load_source, split_off_validation
from fedpeft.data.task_sequence import TaskSequence
from fedpeft.errors import ConfigError, DataError
from fedpeft.machine import seeds
from fedpeft.parts.families import PARTITIONS, TASKS
from fedpeft.wiring.auto_defaults import resolve_partition
from fedpeft.wiring.dataset_info import DatasetInfo
from fedpeft.wiring.run_spec import RunSpec


@dataclass(frozen=True, eq=False)
class SimulatedRows:
    """All examples.

    Attributes:
        dataset: where they come from, with its test set.
        train: the training examples that clients have.
        held: the validation set, which no client has.
        partition: which of `train` belong to which client.
        spec: the run, with the partition that `auto` stands for.
    """

    dataset: Dataset
    train: Rows
    held: Rows
    partition: Shards
    spec: RunSpec

    @classmethod
    def load(cls, spec: RunSpec, clients: int) -> SimulatedRows:
        """Load the examples that the settings describe, for `clients` clients; 0: one per owner.

        Raises:
            FedpeftError: they can't be fetched, used, or partitioned like this.
        """
        _check_client_count(spec, clients)
        dataset, seed = load_source(spec.dataset, spec.config.dataset), spec.config.seed
        spec = resolve_partition(spec, TASKS.build(dataset.task).targets)
        assert spec.partitioner is not None
        train, held = split_off_validation(dataset)
        if dataset.tasks is not None:
            partition = split_by_task(spec.partitioner, train, dataset.tasks, clients, seed)
            return cls(dataset, train, held, partition, spec)
        return cls(dataset, train, held, split(spec.partitioner, train, clients, seed), spec)

    @property
    def facts(self) -> DatasetInfo:
        """The dataset info that a setup needs."""
        return DatasetInfo.from_dataset(self.dataset, len(self.partition), judged=len(self.held) > 0)

    @cached_property
    def all(self) -> Rows:
        """The clients' examples, and after them the validation set."""
        return join_rows(self.train, self.held)

    @cached_property
    def validation(self) -> NDArray[np.int64]:
        """Indices of the validation set in `all`, (rows,)."""
        return np.arange(len(self.train), len(self.train) + len(self.held))

    @property
    def statistics(self) -> PartitionStatistics:
        """Statistics of the partition."""
        return self.partition.statistics(self.train.classes, len(self.train))


def _check_client_count(spec: RunSpec, clients: int) -> None:
    """Refuse a partition that can't make one client per owner, before a large dataset is read.

    Raises:
        ConfigError: `clients` is 0, and the partition needs a number.
    """
    text = spec.config.partition
    if spec.partitioner is None:
        text = getattr(spec.dataset, "suited_partition", None) or USUAL
    if clients == 0 and isinstance(PARTITIONS.build(text), NeedsClientCount):
        raise ConfigError(
            f"FP1781 --clients 0 stands for one client per owner, which the partition {text} does not make; give "
            "--partition natural, or a number of clients"
        )


def split_by_task(partitioner: Partitioner, train: Rows, tasks: TaskSequence, clients: int, seed: int) -> Partition:
    """Partition each task's examples separately, so that every client has examples of every task.

    Raises:
        DataError: a task has too few examples; or the partition gives clients the same examples, or changes them.
    """
    shards: list[list[NDArray[np.int64]]] = []
    assert train.tasks is not None  # the dataset has tasks
    for task, name in enumerate(tasks.names):
        own = np.flatnonzero(train.tasks == task)
        try:
            part = split(partitioner, train.take(own), clients, seeds.derive_seed(seed, "partition", task))
        except DataError as error:
            raise DataError(f"FP3176 task {task + 1}, {name}: {error}") from None
        if part.resampled or (shards and len(part) != len(shards)):
            raise DataError(
                "FP3177 this partition can't split the examples of several tasks over the same clients; use "
                "iid or dirichlet"
            )
        shards = shards or [[] for _ in range(len(part))]
        for client, rows in enumerate(shards):
            rows.append(own[part.shard(client)])
    return Partition.from_shards([np.concatenate(rows) for rows in shards])

"""The rows of a simulation: a data set, the part of it that nobody trains on, and whose the others are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedpeft import seeds
from fedpeft.data.partition import Partition, Partitioner, PartitionStatistics, Shards, split
from fedpeft.data.rows import Dataset, Rows, join_rows, load_source, split_off_validation
from fedpeft.data.task_sequence import TaskSequence
from fedpeft.errors import DataError
from fedpeft.models.task import TASKS
from fedpeft.wiring.auto_defaults import resolve_partition
from fedpeft.wiring.dataset_info import DatasetInfo
from fedpeft.wiring.run_spec import RunSpec


@dataclass(frozen=True, eq=False)
class SimulatedRows:
    """All rows.

    Attributes:
        dataset: where they come from, with its test rows.
        train: the training rows that clients have.
        held: the training rows that nobody has: for validation.
        partition: which of `train` are whose.
        spec: the run, with the partition that `auto` stands for.
    """

    dataset: Dataset
    train: Rows
    held: Rows
    partition: Shards
    spec: RunSpec

    @classmethod
    def load(cls, spec: RunSpec, clients: int) -> SimulatedRows:
        """Load the rows of a run, on `clients` clients; 0: one per owner.

        Raises:
            FedpeftError: they can't be fetched, used, or split so.
        """
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
        """What a setup needs to know of them."""
        return DatasetInfo.from_dataset(self.dataset, len(self.partition), judged=len(self.held) > 0)

    @cached_property
    def all(self) -> Rows:
        """The clients' rows, and after them those for validation."""
        return join_rows(self.train, self.held)

    @cached_property
    def validation(self) -> NDArray[np.int64]:
        """Which of `all` are for validation, (rows,)."""
        return np.arange(len(self.train), len(self.train) + len(self.held))

    @property
    def statistics(self) -> PartitionStatistics:
        """What the partition looks like."""
        return self.partition.statistics(self.train.classes, len(self.train))


def split_by_task(partitioner: Partitioner, train: Rows, tasks: TaskSequence, clients: int, seed: int) -> Partition:
    """Each task's rows over all clients by themselves, so that every client has rows of every task.

    Raises:
        DataError: a task has too few rows; or the partition gives clients the same rows, or makes others of them.
    """
    shards: list[list[NDArray[np.int64]]] = []
    assert train.tasks is not None  # of a data set with tasks
    for task, name in enumerate(tasks.names):
        own = np.flatnonzero(train.tasks == task)
        try:
            part = split(partitioner, train.take(own), clients, seeds.derive_seed(seed, "partition", task))
        except DataError as error:
            raise DataError(f"FP3176 task {task + 1}, {name}: {error}") from None
        if part.resampled or (shards and len(part) != len(shards)):
            raise DataError(
                "FP3177 the tasks' rows can't be split like this over the same clients; take iid or dirichlet"
            )
        shards = shards or [[] for _ in range(len(part))]
        for client, rows in enumerate(shards):
            rows.append(own[part.shard(client)])
    return Partition.from_shards([np.concatenate(rows) for rows in shards])

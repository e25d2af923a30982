"""Partitions of the training examples over clients: disjoint, complete, and without empty shards except where noted."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr  # type: ignore[import-untyped, unused-ignore]

from fedpeft.data.rows import Rows
from fedpeft.errors import DataError
from fedpeft.machine import growing_array
from fedpeft.machine.seeds import create_generator
from fedpeft.parts import name_of


@dataclass(frozen=True)
class PartitionStatistics:
    """Sizes and label skew of a partition.

    Attributes:
        clients: number of shards.
        rows_min: rows of the smallest shard.
        rows_median: median rows of a shard.
        rows_max: rows of the largest shard.
        unused_rows: rows that no client has.
        label_entropy: mean over clients of their labels' entropy, divided by the entropy of all labels. It is 1 for
            equal label distributions, and 0 for one class per client; None without labels.
        label_distance: mean over clients of the total-variation distance (0 to 1) between their label distribution and
            that of all clients' rows; None without labels.
        resampled: whether several clients may share a row (`fedpeft.data.partitions.resample`).
    """

    clients: int
    rows_min: int
    rows_median: float
    rows_max: int
    unused_rows: int
    label_entropy: float | None
    label_distance: float | None
    resampled: bool = False

    def drop_labels(self) -> PartitionStatistics:
        """Return a copy without the values that depend on labels."""
        return replace(self, label_entropy=None, label_distance=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as a dictionary for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the statistics in one line."""
        clients = "1 client" if self.clients == 1 else f"{self.clients} clients"
        text = f"{clients}, examples {self.rows_min} / {self.rows_median:g} / {self.rows_max} (min/median/max)"
        if self.label_distance is not None:
            text += f", label skew {self.label_distance:.2f} (total variation; 0 = equal, 1 = disjoint)"
        if self.resampled:
            text += "; drawn with replacement, so that clients share examples"
        if self.unused_rows:
            text += f", {self.unused_rows} examples unused"
        return text


class Shards(ABC):
    """Row numbers of each client."""

    resampled: ClassVar[bool] = False
    """Whether several clients may share a row."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of clients."""

    @abstractmethod
    def shard(self, client: int) -> NDArray[np.int64]:
        """Return the row numbers of `client` (0 <= client < clients), ascending, int64 (rows in its shard,)."""

    @property
    @abstractmethod
    def sizes(self) -> NDArray[np.int64]:
        """Rows per client, int64 (clients,)."""

    @abstractmethod
    def statistics(self, labels: NDArray[np.int64] | None, rows: int | None = None) -> PartitionStatistics:
        """Return sizes and label skew.

        Args:
            labels: int64 (rows,), the labels of all rows; or None.
            rows: the number of all rows if there are no labels.
        """


@dataclass(frozen=True, eq=False)
class Partition(Shards):
    """Row numbers, shard after shard.

    Attributes:
        indices: int64 (rows,), row numbers; ascending inside a shard.
        offsets: int64 (clients + 1,); shard k is indices[offsets[k]:offsets[k + 1]].
    """

    indices: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @classmethod
    def from_assignment(cls, client_of_row: NDArray[np.integer], clients: int) -> Partition:
        """Build a partition from int (rows,): the client of each row, or -1 for an unused row."""
        made = growing_array.create_spool(np.int32)
        for part in growing_array.iterate_parts(len(client_of_row)):
            made.append(client_of_row[part] + 1)  # rows without a client come first
        place = made.create_array()
        order, sizes = (
            growing_array.sort_by_group(None, place, clients + 1),
            growing_array.count_groups(place, clients + 1),
        )
        return cls(order[sizes[0] :], np.concatenate(([0], np.cumsum(sizes[1:]))).astype(np.int64))

    @classmethod
    def from_shards(cls, shards: Sequence[NDArray[np.integer]]) -> Partition:
        """Build a partition from one int array of row numbers per client."""
        offsets = np.concatenate(([0], np.cumsum([len(s) for s in shards]))).astype(np.int64)
        return cls(np.concatenate([np.sort(s) for s in shards]).astype(np.int64), offsets)

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self.offsets) - 1

    def shard(self, client: int) -> NDArray[np.int64]:
        """Return the row numbers of `client` (0 <= client < clients), int64 (rows in its shard,)."""
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows per client, int64 (clients,)."""
        return np.diff(self.offsets)

    def check(self, rows: int, covering: bool = True) -> Partition:
        """Return this partition if it is a legal one of `rows` rows.

        Raises:
            DataError: a client has no row; or a row number is out of range, used twice, or (if `covering`) missing.
        """
        empty = np.flatnonzero(self.sizes <= 0)
        if len(empty):
            raise DataError(
                f"FP3079 the partition leaves {len(empty)} clients without examples, e.g. client {empty[0]}"
            )
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.indices):
            raise DataError(
                "FP3080 the partition's offsets do not fit its indices; build it with Partition.from_shards"
            )
        if len(self.indices) and (self.indices.min() < 0 or self.indices.max() >= rows):
            raise DataError(f"FP3081 the partition contains example indices outside of 0 to {rows - 1}")
        used = np.bincount(self.indices, minlength=rows)
        if used.max(initial=0) > 1:
            raise DataError(f"FP3082 the partition assigns example {int(used.argmax())} to two clients")
        if covering and not used.all():
            raise DataError(
                f"FP3083 the partition leaves {int((used == 0).sum())} examples out, e.g. example {int(used.argmin())}"
            )
        return self

    def statistics(self, labels: NDArray[np.int64] | None, rows: int | None = None) -> PartitionStatistics:
        """Return sizes and label skew; see `Shards.statistics`."""
        sizes = self.sizes
        total = len(self.indices) if rows is None else rows
        evenness = distance = None
        if labels is not None:
            total = len(labels)
            client_of_index = np.repeat(np.arange(len(self)), sizes)
            classes = int(labels.max()) + 1
            cells = client_of_index * classes + labels[self.indices]
            # per client and class
            counts = np.bincount(cells, minlength=len(self) * classes).reshape(len(self), classes)
            shares = counts / counts.sum(1, keepdims=True)
            overall_shares = counts.sum(0) / counts.sum()
            evenness = float(entr(shares).sum(1).mean() / max(float(entr(overall_shares).sum()), np.finfo(float).tiny))
            distance = float(np.abs(shares - overall_shares).sum(1).mean() / 2)
        return PartitionStatistics(
            clients=len(self),
            rows_min=int(sizes.min()),
            rows_median=float(np.median(sizes)),
            rows_max=int(sizes.max()),
            unused_rows=total - len(self.indices),
            label_entropy=evenness,
            label_distance=distance,
        )


class Partitioner(Protocol):
    """Interface of a partition part: a way to split rows over clients."""

    def split(self, rows: Rows, clients: int, seed: int) -> Shards:
        """Return one shard of `rows` for each of `clients`; equal seeds give equal partitions."""
        ...


@runtime_checkable
class NeedsClientCount(Protocol):
    """The partition splits the rows over a given number of clients, so that 0, one per owner, is not legal."""

    needs_client_count: ClassVar[bool]


@runtime_checkable
class IgnoresOwners(Protocol):
    """The partition does not read the owners of the rows, so that a column of owners has no effect."""

    ignores_owners: ClassVar[bool]


USUAL = "dirichlet(alpha=0.5)"
"""Default partition of datasets without a preference, as in papers."""


def split(partitioner: Partitioner, rows: Rows, clients: int, seed: int) -> Shards:
    """Return the shards that a partition part makes of `rows`, checked, since the part may be a plugin.

    Raises:
        DataError: the part can't split these rows, returns another type or number of clients, uses a row twice or one
            that does not exist, or leaves a client without rows.
    """
    shards, name = partitioner.split(rows, clients, seed), name_of(type(partitioner))
    if not isinstance(shards, Shards):
        raise DataError(
            f"FP3084 the partition {name} returns a {type(shards).__name__} but must return Shards; "
            "Partition.from_shards builds them from one array of example indices per client"
        )
    if clients and len(shards) != clients:
        raise DataError(
            f"FP3085 the partition {name} creates {len(shards)} clients instead of {clients}; correct its split()"
        )
    return shards.check(len(rows), covering=False) if isinstance(shards, Partition) else shards


def require_rows(rows: Rows, clients: int) -> None:
    """Raise DataError unless each of `clients` can have a row."""
    if clients < 1:
        raise DataError(f"FP3086 the number of clients must be at least 1, got {clients}")
    if clients > len(rows):
        raise DataError(
            f"FP3087 {clients} clients can't share {len(rows)} training examples, since each needs at least one; "
            f"give at most {len(rows)} clients"
        )


def fill_empty_clients(
    client_of_row: NDArray[np.int64], clients: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Give each empty client one random row of the then largest client; int64 (rows,).

    `clients` is at most the number of rows. With many clients, the usual per-class Dirichlet split leaves some empty.
    Drawing again until none is empty, as some code does, never ends for thousands of clients.
    """
    sizes = np.bincount(client_of_row, minlength=clients)
    empty = np.flatnonzero(sizes == 0)
    if len(empty) == 0:
        return client_of_row
    result = client_of_row.copy()
    order = generator.permutation(len(result))
    order = order[np.argsort(result[order], kind="stable")]  # by client, shuffled inside a client
    ends = np.cumsum(sizes)
    heap = [(-int(size), client) for client, size in enumerate(sizes) if size > 1]
    heapq.heapify(heap)
    for client in empty.tolist():
        size, largest = heap[0]
        ends[largest] -= 1
        result[order[ends[largest]]] = client
        if size < -2:
            heapq.heapreplace(heap, (size + 1, largest))
        else:
            heapq.heappop(heap)
    return result


def split_held_out(
    rows: NDArray[np.int64], share: float, seed: int, client: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split a client's rows: keep at least one for training, and hold out the `share` of them, rounded."""
    count = min(round(share * len(rows)), len(rows) - 1)
    if count <= 0:
        return rows, rows[:0]
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[create_generator(seed, "held out", client).permutation(len(rows))[:count]] = True
    return rows[~chosen], rows[chosen]


def select_training_shards(shards: Shards, share: float, seed: int) -> Partition:
    """Return each client's examples without the `share` that `split_held_out` holds out."""
    return Partition.from_shards([split_held_out(shards.shard(k), share, seed, k)[0] for k in range(len(shards))])

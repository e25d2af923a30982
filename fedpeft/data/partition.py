"""How the training rows lie on the clients: disjoint shards, none empty, covering, unless a part says otherwise."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr  # type: ignore[import-untyped, unused-ignore]

from fedpeft.data.rows import Rows
from fedpeft.errors import DataError
from fedpeft.families import PARTITIONS as PARTITIONS
from fedpeft.machine import growing_array
from fedpeft.parts import name_of
from fedpeft.seeds import create_generator


@dataclass(frozen=True)
class PartitionStatistics:
    """What a partition looks like.

    Attributes:
        clients: number of shards.
        rows_min: rows of the smallest shard.
        rows_median: median rows of a shard.
        rows_max: rows of the largest shard.
        unused_rows: rows that no client has.
        label_entropy: mean over clients of the entropy of their labels divided by that of all labels: 1 for equal label
            distributions, 0 for one class per client; None without labels.
        label_distance: mean over clients of the total-variation distance (0 to 1) between their label distribution and
            that of all clients' rows; None without labels.
        resampled: whether a row may be several clients' (`fedpeft.data.partitions.resample`).
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
        """The same, without what depends on labels."""
        return replace(self, label_entropy=None, label_distance=None)

    def to_dict(self) -> dict[str, Any]:
        """The attributes as a dictionary that JSON holds."""
        return asdict(self)

    def __str__(self) -> str:
        clients = "1 client" if self.clients == 1 else f"{self.clients} clients"
        text = f"{clients}, rows {self.rows_min} / {self.rows_median:g} / {self.rows_max} (min/median/max)"
        if self.label_distance is not None:
            text += f", label skew {self.label_distance:.2f} (total variation; 0 = equal, 1 = disjoint)"
        if self.resampled:
            text += "; drawn with replacement, so that clients share rows"
        if self.unused_rows:
            text += f", {self.unused_rows} rows unused"
        return text


class Shards(ABC):
    """Which rows each client has."""

    resampled: ClassVar[bool] = False
    """Whether a row may be several clients'."""

    @abstractmethod
    def __len__(self) -> int:
        """How many clients there are."""

    @abstractmethod
    def shard(self, client: int) -> NDArray[np.int64]:
        """The row numbers of `client` (0 <= client < clients), ascending, int64 (rows of it,)."""

    @property
    @abstractmethod
    def sizes(self) -> NDArray[np.int64]:
        """Rows per client, int64 (clients,)."""

    @abstractmethod
    def statistics(self, labels: NDArray[np.int64] | None, rows: int | None = None) -> PartitionStatistics:
        """Sizes and label skew, for `labels` int64 (rows,) of all rows, or None and the number of rows."""


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
        """From int (rows,): the client of each row, or -1 for a row that stays unused."""
        made = growing_array.create_spool(np.int32)
        for part in growing_array.iterate_parts(len(client_of_row)):
            made.append(client_of_row[part] + 1)  # the rows of nobody come first
        place = made.create_array()
        order, sizes = (
            growing_array.sort_by_group(None, place, clients + 1),
            growing_array.count_groups(place, clients + 1),
        )
        return cls(order[sizes[0] :], np.concatenate(([0], np.cumsum(sizes[1:]))).astype(np.int64))

    @classmethod
    def from_shards(cls, shards: Sequence[NDArray[np.integer]]) -> Partition:
        """From one int array of row numbers per client."""
        offsets = np.concatenate(([0], np.cumsum([len(s) for s in shards]))).astype(np.int64)
        return cls(np.concatenate([np.sort(s) for s in shards]).astype(np.int64), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def shard(self, client: int) -> NDArray[np.int64]:
        """The row numbers of `client` (0 <= client < clients), int64 (rows of it,)."""
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows per client, int64 (clients,)."""
        return np.diff(self.offsets)

    def check(self, rows: int, covering: bool = True) -> Partition:
        """Itself, if it is a legal partition of `rows` rows.

        Raises:
            DataError: a client has no row, a row number is out of range or used twice, or (if `covering`) left out.
        """
        empty = np.flatnonzero(self.sizes <= 0)
        if len(empty):
            raise DataError(f"FP3079 the partition leaves {len(empty)} clients without rows, e.g. client {empty[0]}")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.indices):
            raise DataError("FP3080 the partition's offsets do not fit its indices")
        if len(self.indices) and (self.indices.min() < 0 or self.indices.max() >= rows):
            raise DataError(f"FP3081 the partition names rows outside of 0 to {rows - 1}")
        used = np.bincount(self.indices, minlength=rows)
        if used.max(initial=0) > 1:
            raise DataError(f"FP3082 the partition gives row {int(used.argmax())} to two clients")
        if covering and not used.all():
            raise DataError(
                f"FP3083 the partition leaves {int((used == 0).sum())} rows out, e.g. row {int(used.argmin())}"
            )
        return self

    def statistics(self, labels: NDArray[np.int64] | None, rows: int | None = None) -> PartitionStatistics:
        """Sizes and label skew, for `labels` int64 (rows,) of all rows, or None and the number of rows."""
        sizes = self.sizes
        total = len(labels) if labels is not None else len(self.indices) if rows is None else rows
        evenness = distance = None
        if labels is not None:
            client_of_index = np.repeat(np.arange(len(self)), sizes)
            classes = int(labels.max()) + 1
            cells = client_of_index * classes + labels[self.indices]
            counts_KC = np.bincount(cells, minlength=len(self) * classes).reshape(len(self), classes)
            shares_KC = counts_KC / counts_KC.sum(1, keepdims=True)
            overall_C = counts_KC.sum(0) / counts_KC.sum()
            evenness = float(entr(shares_KC).sum(1).mean() / max(float(entr(overall_C).sum()), np.finfo(float).tiny))
            distance = float(np.abs(shares_KC - overall_C).sum(1).mean() / 2)
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
    """A partition part: a way to split rows over clients."""

    def split(self, rows: Rows, clients: int, seed: int) -> Shards:
        """One shard of `rows` for each of `clients`; equal seeds give equal partitions."""
        ...


USUAL = "dirichlet(alpha=0.5)"
"""How rows of data sets that don't say otherwise are split, as papers do."""


def split(partitioner: Partitioner, rows: Rows, clients: int, seed: int) -> Shards:
    """What a partition part makes of `rows`, which may be anybody's part: checked.

    Raises:
        DataError: it can't split them so; or has given something else than was asked for, rows that there are not, one
            row to two clients, or none to one.
    """
    shards, name = partitioner.split(rows, clients, seed), name_of(type(partitioner))
    if not isinstance(shards, Shards):
        raise DataError(
            f"FP3084 the partition {name} returns a {type(shards).__name__} where it has to return Shards, such as "
            "Partition.from_shards makes of an array of row numbers for each client"
        )
    if clients and len(shards) != clients:
        raise DataError(f"FP3085 the partition {name} makes {len(shards)} clients where {clients} were asked for")
    return shards.check(len(rows), covering=False) if isinstance(shards, Partition) else shards


def require_rows(rows: Rows, clients: int) -> None:
    """Raise DataError unless each of `clients` can have a row."""
    if clients < 1:
        raise DataError(f"FP3086 the number of clients must be at least 1, got {clients}")
    if clients > len(rows):
        raise DataError(
            f"FP3087 {clients} clients can't share {len(rows)} training rows: each needs at least one; "
            f"ask for at most {len(rows)} clients"
        )


def fill_empty_clients(
    client_of_row: NDArray[np.int64], clients: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """`client_of_row` int64 (rows,) with each empty client given one random row of the then largest client.

    The usual per-class Dirichlet split leaves clients empty once there are many; drawing again until none is, as some
    code does, never ends for thousands of clients. `clients` must be at most the number of rows.
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
    """A client's rows in two: to train on (at least one), and the `share` of them, rounded, that is held out."""
    count = min(round(share * len(rows)), len(rows) - 1)
    if count <= 0:
        return rows, rows[:0]
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[create_generator(seed, "held out", client).permutation(len(rows))[:count]] = True
    return rows[~chosen], rows[chosen]


def select_training_shards(shards: Shards, share: float, seed: int) -> Partition:
    """Return the rows of each client without the `share` of them that `split_held_out` sets apart."""
    return Partition.from_shards([split_held_out(shards.shard(k), share, seed, k)[0] for k in range(len(shards))])

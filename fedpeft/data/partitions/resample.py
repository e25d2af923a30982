"""Rows drawn with replacement for each client: any number of simulated clients on few rows.

A client's draws depend on the seed and its id alone and are made on demand, so a million clients take as little memory
as one. Clients are alike up to chance, and many share a row. Such a population shows the cost of more clients, but not
their benefit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.partition import Partition, PartitionStatistics, Shards
from fedpeft.data.rows import Rows
from fedpeft.errors import DataError
from fedpeft.machine import seeds
from fedpeft.parts import setting

LOOKED_AT = 1000
"""Number of evenly spaced clients from which the statistics are computed."""


@dataclass(frozen=True)
class ResampledShards(Shards):
    """Shards of `clients` clients, each with `size` of `rows` rows."""

    rows: int
    clients: int
    size: int
    seed: int

    resampled = True

    def __len__(self) -> int:
        """Return the number of clients."""
        return self.clients

    def shard(self, client: int) -> NDArray[np.int64]:
        """Return the row numbers of `client` (0 <= client < clients), ascending, int64 (size,)."""
        if not 0 <= client < self.clients:
            raise IndexError(f"there is no client {client} of {self.clients}")
        return np.sort(
            seeds.create_generator(self.seed, "partition resample", client).integers(self.rows, size=self.size)
        )

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows per client, int64 (clients,); the array takes no memory."""
        return np.broadcast_to(np.int64(self.size), (self.clients,))

    def statistics(self, labels: NDArray[np.int64] | None, rows: int | None = None) -> PartitionStatistics:
        """Return sizes, the label skew of `LOOKED_AT` clients, and the expected number of unused rows.

        See `Shards.statistics`.
        """
        some = np.unique(np.linspace(0, self.clients - 1, min(self.clients, LOOKED_AT)).astype(np.int64))
        seen = Partition.from_shards([self.shard(int(client)) for client in some])
        unused = round(self.rows * (1 - 1 / self.rows) ** (self.clients * self.size))
        return replace(seen.statistics(labels, rows), clients=self.clients, unused_rows=unused, resampled=True)


@dataclass(frozen=True)
class Resample:
    """The same number of rows for each client, drawn with replacement."""

    needs_client_count: ClassVar[bool] = True
    ignores_owners: ClassVar[bool] = True

    rows: int = setting(20, "examples of each client", low=1)

    def split(self, rows: Rows, clients: int, seed: int) -> ResampledShards:
        """Return shards that are drawn on demand.

        Raises:
            DataError: there is no client.
        """
        if clients < 1:
            raise DataError(f"FP3086 the number of clients must be at least 1, got {clients}")
        return ResampledShards(len(rows), clients, self.rows, seed)


part = Resample

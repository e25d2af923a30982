"""Each client's rows are drawn with replacement from all rows: as many simulated clients as one likes, on few rows.

The draws of a client depend on the seed and its id alone and are made when they are asked for, so a million clients
take as little memory as one. Clients are alike up to chance, and a row is with many of them: what a run gains from
more clients is not to be read off such a population, what it costs is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedpeft import seeds
from fedpeft.data.partition import Partition, PartitionStatistics, Shards
from fedpeft.data.rows import Rows
from fedpeft.errors import DataError
from fedpeft.parts import setting

LOOKED_AT = 1000
"""Clients, evenly spaced, that the statistics are of."""


@dataclass(frozen=True)
class Drawn(Shards):
    """The shards of `clients` clients with `size` of `rows` rows each."""

    rows: int
    clients: int
    size: int
    seed: int

    resampled = True

    def __len__(self) -> int:
        return self.clients

    def shard(self, client: int) -> NDArray[np.int64]:
        """The row numbers of `client` (0 <= client < clients), ascending, int64 (size,)."""
        if not 0 <= client < self.clients:
            raise IndexError(f"there is no client {client} of {self.clients}")
        return np.sort(
            seeds.create_generator(self.seed, "partition resample", client).integers(self.rows, size=self.size)
        )

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows per client, int64 (clients,); it takes no memory."""
        return np.broadcast_to(np.int64(self.size), (self.clients,))

    def statistics(self, labels: NDArray[np.int64] | None, rows: int | None = None) -> PartitionStatistics:
        """Sizes, the label skew of `LOOKED_AT` clients, and how many rows are expected to be nobody's; see
        `Partition.statistics`."""
        some = np.unique(np.linspace(0, self.clients - 1, min(self.clients, LOOKED_AT)).astype(np.int64))
        seen = Partition.from_shards([self.shard(int(client)) for client in some])
        unused = round(self.rows * (1 - 1 / self.rows) ** (self.clients * self.size))
        return replace(seen.statistics(labels, rows), clients=self.clients, unused_rows=unused, resampled=True)


@dataclass(frozen=True)
class Resample:
    """The same number of rows for each client, drawn with replacement."""

    rows: int = setting(20, "of each client", low=1)

    def split(self, rows: Rows, clients: int, seed: int) -> Drawn:
        """Shards that are drawn when they are asked for.

        Raises:
            DataError: there is no client.
        """
        if clients < 1:
            raise DataError(f"FP3086 the number of clients must be at least 1, got {clients}")
        return Drawn(len(rows), clients, self.rows, seed)


part = Resample

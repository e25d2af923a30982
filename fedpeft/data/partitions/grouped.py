"""Any number of clients, each with whole owners; an owner is never split over two clients.

Owners are sorted by name, and a client gets consecutive ones. So owners with similar names, such as `films/0001` and
`films/0002`, come together. The sorted rows are cut into equal pieces, and an owner belongs to the client whose piece
contains its middle row. An owner moves to another client if a client would have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.data.partition import Partition
from fedpeft.data.rows import Rows
from fedpeft.errors import DataError


@dataclass(frozen=True)
class Grouped:
    """Groups of owners; no settings."""

    needs_client_count: ClassVar[bool] = True

    def split(self, rows: Rows, clients: int, seed: int) -> Partition:
        """Return disjoint, covering shards, none empty; `seed` has no effect.

        Raises:
            DataError: the rows have no owners, or fewer than `clients`.
        """
        if rows.owners is None:
            raise DataError(
                "FP3090 the grouped partition needs owners, but these examples have none; name their column: "
                "owner=COLUMN"
            )
        owners, owner_of_row, sizes = np.unique(rows.owners, return_inverse=True, return_counts=True)
        if not 1 <= clients <= len(owners):
            raise DataError(f"FP3091 the data has {len(owners)} owners, got {clients} clients; give 1 to {len(owners)}")
        middles = np.cumsum(sizes) - sizes / 2
        client_of_owner = np.zeros(len(owners), np.int64)
        client = 0
        for owner, wanted in enumerate((middles * clients / len(rows)).astype(np.int64).tolist()):
            fewest = clients - len(owners) + owner  # leaves one owner for each later client
            client = min(max(wanted, client, fewest), client + 1 if owner else 0)
            client_of_owner[owner] = client
        return Partition.from_assignment(client_of_owner[owner_of_row], clients)


part = Grouped

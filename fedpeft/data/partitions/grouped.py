"""As many clients as one likes, each with whole owners of about as many rows together: no owner is two clients'.

Owners stand in the order of their names, and a client has some that follow each other: names that begin alike, such as
`films/0001` and `films/0002`, come together. Where the rows are cut into equal pieces, an owner is the client's whose
piece its middle lies in, as far as every client has an owner then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedpeft.data.partition import Partition
from fedpeft.data.rows import Rows
from fedpeft.errors import DataError


@dataclass(frozen=True)
class Grouped:
    """Groups of owners; no settings."""

    def split(self, rows: Rows, clients: int, seed: int) -> Partition:
        """Disjoint, covering shards, none empty; the same for every `seed`.

        Raises:
            DataError: the rows name no owners, or fewer than `clients`.
        """
        if rows.owners is None:
            raise DataError("FP3090 the grouped partition needs owners, and these rows name none; name their column")
        owners, owner_of_row, sizes = np.unique(rows.owners, return_inverse=True, return_counts=True)
        if not 1 <= clients <= len(owners):
            raise DataError(
                f"FP3091 the data names {len(owners)} owners: ask for 1 to {len(owners)} clients, not {clients}"
            )
        middles = np.cumsum(sizes) - sizes / 2
        client_of_owner = np.zeros(len(owners), np.int64)
        client = 0
        for owner, wanted in enumerate((middles * clients / len(rows)).astype(np.int64).tolist()):
            fewest = clients - len(owners) + owner  # else those that are left could not give the rest an owner each
            client = min(max(wanted, client, fewest), client + 1 if owner else 0)
            client_of_owner[owner] = client
        return Partition.from_assignment(client_of_owner[owner_of_row], clients)


part = Grouped

"""One client per owner that the data contain: a user, a hospital, a role in a play.

If every owner becomes a client, every row is used. With fewer clients than owners, the rows of the other owners stay
unused: rows of two people are never merged into one client, since that would change what a client is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedpeft.data.partition import Partition
from fedpeft.data.rows import Rows
from fedpeft.errors import DataError
from fedpeft.machine import growing_array, seeds
from fedpeft.parts import setting


@dataclass(frozen=True)
class Natural:
    """One client per owner."""

    keep: str = setting(
        "largest",
        "owners that become clients if there are fewer clients than owners",
        choices=("largest", "random"),
    )

    def split(self, rows: Rows, clients: int, seed: int) -> Partition:
        """Return the owners' shards, in the order of the owners' names; `clients` = 0 means all owners.

        Raises:
            DataError: the rows have no owners, or fewer than `clients`.
        """
        if rows.owners is None:
            raise DataError(
                "FP3092 the natural partition needs owners, but these examples have none; name their column: "
                "owner=COLUMN"
            )
        owners, owner_of_row = growing_array.find_unique(rows.owners)
        sizes = growing_array.count_groups(owner_of_row, len(owners))
        if clients < 0:
            raise DataError(f"FP3093 the number of clients must be at least 1, or 0 for all owners, got {clients}")
        if clients > len(owners):
            raise DataError(
                f"FP3094 the data has {len(owners)} owners, too few for {clients} clients; give 1 to "
                f"{len(owners)}, or 0 for all of them"
            )
        clients = clients or len(owners)
        if self.keep == "largest":
            kept = np.argsort(-sizes, kind="stable")[:clients]
        else:
            kept = seeds.create_generator(seed, "partition natural").permutation(len(owners))[:clients]
        client_of_owner = np.full(len(owners), -1, np.int32)
        client_of_owner[np.sort(kept)] = np.arange(clients)
        return Partition.from_assignment(growing_array.take_rows(client_of_owner, owner_of_row), clients)


part = Natural

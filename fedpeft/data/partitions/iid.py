"""Identical distributions: the rows are shuffled and cut into shards of equal size.

Sizes differ by at most one row. This is the easiest case, and the usual assumption of theory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.data.partition import Partition, require_rows
from fedpeft.data.rows import Rows
from fedpeft.machine import seeds


@dataclass(frozen=True)
class IID:
    """Shuffle and cut; there are no settings."""

    needs_client_count: ClassVar[bool] = True
    ignores_owners: ClassVar[bool] = True

    def split(self, rows: Rows, clients: int, seed: int) -> Partition:
        """Return disjoint, covering shards whose sizes differ by at most one row."""
        require_rows(rows, clients)
        return Partition.from_shards(
            np.array_split(seeds.create_generator(seed, "partition iid").permutation(len(rows)), clients)
        )


part = IID

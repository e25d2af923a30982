"""Size skew: labels are mixed as in iid, but some clients have far more rows than others.

Each client gets one row. The rest is spread by proportions q ~ Dirichlet(alpha, ..., alpha) over the clients. This is
the quantity skew of NIID-Bench (Li et al. 2022, arXiv:2102.02079), which draws again if a client is too small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.data.partition import Partition, require_rows
from fedpeft.data.rows import Rows
from fedpeft.machine import seeds
from fedpeft.parts import setting


@dataclass(frozen=True)
class Quantity:
    """Dirichlet sizes, iid content."""

    needs_client_count: ClassVar[bool] = True
    ignores_owners: ClassVar[bool] = True
    argument: ClassVar[str] = "alpha"

    alpha: float = setting(
        0.5,
        "concentration of the sizes: 100 is nearly equal, 0.1 gives a few clients most examples",
        low=1e-3,
        high=1e6,
    )

    def split(self, rows: Rows, clients: int, seed: int) -> Partition:
        """Return disjoint, covering shards, none empty."""
        require_rows(rows, clients)
        generator = seeds.create_generator(seed, "partition quantity")
        shares = generator.dirichlet(np.full(clients, self.alpha))
        sizes = 1 + generator.multinomial(len(rows) - clients, shares)
        return Partition.from_shards(np.split(generator.permutation(len(rows)), np.cumsum(sizes)[:-1]))


part = Quantity

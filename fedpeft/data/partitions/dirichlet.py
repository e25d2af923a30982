"""Label skew: each class is spread over the clients with proportions drawn from a Dirichlet distribution.

For each class c, q_c ~ Dirichlet(alpha, ..., alpha) over the clients, and the shuffled rows of c are cut at its cumsum.
This is the per-class form of Yurochkin et al. 2019 (arXiv:1905.12022) that most federated papers run; sizes differ
between clients too. Hsu et al. 2019 (arXiv:1909.06335) draw one label distribution per client and keep sizes equal.

If labels are numbers, their quantile bins (`bins` of about equal size) serve as classes, so clients differ in the
height of their numbers. Rows with several labels are rejected, since no single label decides their client.

Deviations: a client that gets no row is given a random one from the largest client (see `fill_empty_clients`). The code
of Yurochkin et al. instead redraws until each client has ten rows, and gives no more to clients that have their share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.data.partition import Partition, fill_empty_clients, require_rows
from fedpeft.data.rows import BINS, Rows, assign_quantile_bins
from fedpeft.errors import DataError
from fedpeft.machine import seeds
from fedpeft.parts import setting


@dataclass(frozen=True)
class Dirichlet:
    """Per-class Dirichlet split."""

    needs_client_count: ClassVar[bool] = True
    ignores_owners: ClassVar[bool] = True
    argument: ClassVar[str] = "alpha"

    alpha: float = setting(
        0.5, "concentration: 100 is nearly iid, 0.1 leaves most clients with one or two classes", low=1e-3, high=1e6
    )
    bins: int = setting(BINS, "number of quantile bins that serve as classes if labels are numbers", low=2, high=1000)

    def split(self, rows: Rows, clients: int, seed: int) -> Partition:
        """Return disjoint, covering shards, none empty.

        Raises:
            DataError: the rows have no labels, or several each, or are fewer than the clients.
        """
        require_rows(rows, clients)
        if rows.labels is None:
            other = "iid" if rows.owners is None else "iid, or natural with a client for each owner"
            raise DataError(
                f"FP3088 the dirichlet partition needs labels, but these examples have none; choose {other}"
            )
        if rows.targets == "labels":
            raise DataError(
                "FP3089 the dirichlet partition spreads classes, but these examples have several labels each; choose "
                "iid, quantity, or natural if the examples have owners"
            )
        classes = assign_quantile_bins(rows.labels, self.bins) if rows.targets == "numbers" else rows.labels
        generator = seeds.create_generator(seed, "partition dirichlet")
        client_of_row = np.empty(len(rows), np.int64)
        for label in np.unique(classes):
            members = generator.permutation(np.flatnonzero(classes == label))
            ends = np.cumsum(generator.dirichlet(np.full(clients, self.alpha)))
            # The last end is 1 up to rounding; rows beyond it would have no client.
            cuts = np.minimum(ends * len(members), len(members)).astype(np.int64)[:-1]
            client_of_row[members] = np.searchsorted(cuts, np.arange(len(members)), side="right")
        return Partition.from_assignment(fill_empty_clients(client_of_row, clients, generator), clients)


part = Dirichlet

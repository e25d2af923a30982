"""Label skew: each class is spread over the clients with proportions drawn from a Dirichlet distribution.

For each class c, q_c ~ Dirichlet(alpha, ..., alpha) over the clients, and the shuffled rows of c are cut at its cumsum.
This is the per-class form of Yurochkin et al. 2019 (arXiv:1905.12022) that most federated papers run; sizes differ
between clients too. Hsu et al. 2019 (arXiv:1909.06335) draw one label distribution per client and keep sizes equal.

Where labels are numbers, their quantile bins (`bins` of them, with about equally many rows) stand for classes, so that
clients differ in how high their numbers are. Rows with several labels are refused: which of them would a client have?

Deviation: a client that gets no row is given a random one from the largest client (see `fill_empty_clients`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft import seeds
from fedpeft.data.partition import Partition, fill_empty_clients, require_rows
from fedpeft.data.rows import BINS, Rows, assign_quantile_bins
from fedpeft.errors import DataError
from fedpeft.parts import setting


@dataclass(frozen=True)
class Dirichlet:
    """Per-class Dirichlet split."""

    argument: ClassVar[str] = "alpha"

    alpha: float = setting(
        0.5, "concentration: 100 is nearly iid, 0.1 leaves most clients with one or two classes", low=1e-3, high=1e6
    )
    bins: int = setting(BINS, "of equally many rows that stand for classes where labels are numbers", low=2, high=1000)

    def split(self, rows: Rows, clients: int, seed: int) -> Partition:
        """Disjoint, covering shards, none empty.

        Raises:
            DataError: the rows have no labels, or several each, or are fewer than the clients.
        """
        require_rows(rows, clients)
        if rows.labels is None:
            other = "iid" if rows.owners is None else "iid, or natural, a client for each owner"
            raise DataError(f"FP3088 the dirichlet partition needs labels, and these rows have none; take {other}")
        if rows.targets == "labels":
            raise DataError(
                "FP3089 the dirichlet partition spreads classes, and these rows have several labels each; take iid, "
                "quantity, or natural where rows have owners"
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

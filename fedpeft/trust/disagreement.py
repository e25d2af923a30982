"""Disagreement between the clients of a round, computed from the factors of their updates.

D_k is the change of a layer's weights by client k, a product of factors (`aggregation.factors.change`), and p_k is its
share of the mean. All of these come from the inner products <D_j, D_k>, which need no dense matrix:

    canceled share    1 - norm(sum_k p_k D_k) / sum_k p_k norm(D_k)      0: all pull alike; 1: nothing is left
    cosine            <D_j, D_k> / (norm(D_j) norm(D_k))
    overlap           norm(U_j^T U_k)_F^2 / min(r_j, r_k), U_k spans the columns of what client k has trained (Hu et
                      al., ICLR 2022, arXiv 2106.09685); mean over pairs, 1: one subspace
    sign conflict     mean over entries of min(k, N - k) / N, k of N clients that move it up   0 to 0.5

The sign conflict is that of the trained tensors themselves, as they are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fedpeft.aggregation.aggregator import AggregationResult, Aggregator
from fedpeft.aggregation.factors import change
from fedpeft.aggregation.server_optimizer import OptimizerState
from fedpeft.aggregation.update import Update
from fedpeft.peft.adapter import Layout, State
from fedpeft.peft.low_rank import LowRank, compute_inner_products

MOST_CLIENTS = 100
"""Largest number of clients of a round that are compared, in the order of ids."""

TINY = 1e-6
"""Share of the largest singular value up to which a direction is rounding."""


@dataclass(frozen=True)
class Disagreement:
    """Disagreement between the clients of one round.

    Attributes:
        clients: ids, ascending.
        canceled: share of the whole update that cancels.
        conflict: sign conflict.
        cosines: (clients, clients).
        by_module: `canceled` of each layer's update.
        agreement: by module, the cosine of each client's change with the mean of all, (clients,).
        overlap: by module, overlap of the clients' subspaces; only if adapters are products of factors.
    """

    clients: tuple[int, ...]
    canceled: float
    conflict: float
    cosines: Tensor
    by_module: Mapping[str, float]
    agreement: Mapping[str, Tensor]
    overlap: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self, round_number: int) -> dict[str, Any]:
        """Return a line of disagreement.jsonl; `cosines` contains the upper triangle, row by row."""
        above = torch.triu_indices(len(self.clients), len(self.clients), 1)
        return {
            "round": round_number,
            "clients": list(self.clients),
            "cancelled": self.canceled,
            "conflict": self.conflict,
            "cosines": _round_values(self.cosines[above[0], above[1]]),
            "cancelled_by_module": {name: round_value(value) for name, value in self.by_module.items()},
            "agreement": {name: _round_values(values) for name, values in self.agreement.items()},
            "overlap": {name: round_value(value) for name, value in self.overlap.items()},
        }


def restore_cosines(line: Mapping[str, Any]) -> Tensor:
    """Restore the matrix of cosines (clients, clients) from a line of disagreement.jsonl."""
    count = len(line["clients"])
    cosines = torch.eye(count, dtype=torch.float64)
    above = torch.triu_indices(count, count, 1)
    cosines[above[0], above[1]] = torch.tensor(line["cosines"], dtype=torch.float64)
    return torch.maximum(cosines, cosines.T) + torch.minimum(cosines, cosines.T) - torch.diag(cosines.diagonal())


def round_value(value: float) -> float:
    """Round to four decimals, as many as a figure shows."""
    return round(value, 4)


def _round_values(values: Tensor) -> list[float]:
    return [round_value(float(value)) for value in values]


def compute_canceled_share(gram: Tensor, shares: Tensor) -> float:
    """Compute the canceled share from inner products (clients, clients) and shares (clients,); 0 without changes."""
    apart = float(shares @ gram.diagonal().clamp_min(0).sqrt())
    together = float((shares @ gram @ shares).clamp_min(0).sqrt())
    return max(0.0, 1 - together / apart) if apart > 0 else 0.0


def compute_cosines(gram: Tensor) -> Tensor:
    """Compute cosines from inner products (clients, clients); a client without changes has 0 with the others."""
    norms = gram.diagonal().clamp_min(0).sqrt()
    cosines = gram / (norms[:, None] * norms).clamp_min(torch.finfo(gram.dtype).tiny)
    return cosines.clamp(-1, 1).fill_diagonal_(1.0)


def compute_mean_cosines(gram: Tensor, shares: Tensor) -> Tensor:
    """Compute the cosine of each client's change with the weighted mean, (clients,)."""
    together = (shares @ gram @ shares).clamp_min(0).sqrt()
    norms = gram.diagonal().clamp_min(0).sqrt()
    return ((gram @ shares) / (norms * together).clamp_min(torch.finfo(gram.dtype).tiny)).clamp(-1, 1)


def compute_basis(columns: Tensor) -> Tensor:
    """Return orthonormal columns (out, rank) that span those of a matrix (out, r), except for rounding."""
    left, singular, _ = torch.linalg.svd(columns.double(), full_matrices=False)
    kept: Tensor = left[:, TINY * singular[:1] < singular]
    return kept


def compute_mean_overlap(bases: Sequence[Tensor]) -> float:
    """Compute the mean overlap over all pairs of subspaces, given by orthonormal columns.

    Subspaces of dimension 0 are left out. Without a pair the result is 0.
    """
    kept = [basis for basis in bases if basis.shape[1]]
    shared = [
        float((kept[j].T @ kept[k]).square().sum()) / min(kept[j].shape[1], kept[k].shape[1])
        for j in range(len(kept))
        for k in range(j)
    ]
    return sum(shared) / len(shared) if shared else 0.0


@dataclass
class DisagreementAggregator:
    """An aggregator that passes updates to `inner` and records what they change in the layers of `layout`.

    `products` is whether the adapter's change of a layer is the product of its factors. If not, each tensor is compared
    alone.
    """

    inner: Aggregator
    layout: Layout
    products: bool = True
    _clients: list[int] = field(default_factory=list)
    _weights: list[float] = field(default_factory=list)
    _changes: dict[str, list[LowRank]] = field(default_factory=dict)
    _bases: dict[str, list[Tensor]] = field(default_factory=dict)
    _ups: State = field(default_factory=dict)
    _downs: State = field(default_factory=dict)

    def add(self, update: Update) -> None:
        """Add one update."""
        self.inner.add(update)
        if len(self._clients) >= MOST_CLIENTS:
            return
        self._clients.append(update.client)
        self._weights.append(update.weight)
        factors = set()
        for pair in self.layout.pairs if self.products else ():
            if pair.A in update.received and pair.B in update.received:
                factors |= {pair.A, pair.B}
                self._changes.setdefault(pair.module, []).append(change(pair, update))
                self._bases.setdefault(pair.module, []).append(compute_basis(update.get_trained(pair.B)))
        for name, delta in update.delta.items():
            if name not in factors:  # a vector or a whole matrix; as one row it has the same inner products
                row = LowRank(torch.ones(1, 1, dtype=delta.dtype), delta.reshape(1, -1))
                self._changes.setdefault(name, []).append(row)
            if tuple(delta.shape) == self.layout.shapes[name]:
                for counts, signs in ((self._ups, delta > 0), (self._downs, delta < 0)):
                    counts[name] = counts.get(name, torch.zeros(delta.shape)) + signs

    def finish(self, memory: OptimizerState) -> AggregationResult:
        """Return the result of the round with its clients' disagreement, if there are at least two."""
        outcome = self.inner.finish(memory)
        if len(self._clients) < 2:
            return outcome
        return replace(outcome, disagreement=self._compute_disagreement())

    def _compute_disagreement(self) -> Disagreement:
        weights = torch.tensor(self._weights, dtype=torch.float64)
        shares = weights / weights.sum()
        count = len(self._clients)
        grams = {name: compute_inner_products(c) for name, c in self._changes.items() if len(c) == count}
        whole = sum(grams.values(), torch.zeros(count, count, dtype=torch.float64))
        return Disagreement(
            clients=tuple(self._clients),
            canceled=compute_canceled_share(whole, shares),
            conflict=compute_conflict([(self._ups[name], self._downs[name]) for name in self._ups]),
            cosines=compute_cosines(whole),
            by_module={name: compute_canceled_share(gram, shares) for name, gram in grams.items()},
            agreement={name: compute_mean_cosines(gram, shares) for name, gram in grams.items()},
            overlap={name: compute_mean_overlap(bases) for name, bases in self._bases.items()},
        )


def compute_conflict(counts: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Compute the sign conflict from the numbers of clients that move each entry up and down.

    Unmoved entries are ignored.
    """
    total = entries = 0.0
    for ups, downs in counts:
        moved = ups + downs
        total += float((torch.minimum(ups, downs) / moved.clamp_min(1)).double().sum())
        entries += float((moved > 0).sum())
    return total / entries if entries else 0.0

"""Rules that tolerate hostile updates, in the geometry of the changes of the effective weight.

A client can send (B G, G^-1 A): the same update with arbitrary factors. So rules that read factors can be fooled, and
can hurt honest clients. Here every rule reads the change of the effective weight, which no G alters,

    D_k = s_k (B_k A_k - B A),

through inner products (Krum, norm bounds) or in a basis that all clients share (median, trimmed mean). The combined
change is added to the global s B A, whose best factors at the global rank are kept. A client can lie about its number
of examples, so rules that vote count clients. They skip updates that are not finite.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedpeft.aggregation.changes import Changes, compute_squared_length
from fedpeft.aggregation.factors import compute_best_factors, compute_effective_weight, get_lora_form
from fedpeft.aggregation.strategy import GatherStrategy, Read
from fedpeft.aggregation.update import Cohort, Gathered, compute_weighted_sum
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, LoraPair, State, TensorSpec
from fedpeft.peft.low_rank import METHODS, LowRank, stack


@dataclass(frozen=True)
class RobustStrategy(GatherStrategy):
    """The global weight plus a robust combination of the clients' changes, which subclasses define."""

    svd: str = setting("auto", "method of the SVD; auto: the cheapest exact one", choices=METHODS)
    remainder: str = setting(
        "drop", "what lies beyond the global rank: drop or keep (in the base)", choices=("drop", "keep")
    )

    mixed_ranks: ClassVar[bool] = True
    new_factors: ClassVar[bool] = True
    preserves = ("all ranks",)

    @property
    def fills_base(self) -> bool:
        """Whether the remainder is kept."""
        return self.remainder == "keep"

    @abstractmethod
    def combine(self, pair: LoraPair, cohort: Cohort) -> LowRank | None:
        """Combine the changes of one layer, (out, in); None: no update counts."""

    @abstractmethod
    def combine_plain(self, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Combine the deltas of a tensor outside the LoRA layers, from at least one client."""

    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """Return the best factors of s B A plus the combined change."""
        after, combined = compute_effective_weight(pair, state, get_lora_form(layout)), self.combine(pair, cohort)
        if combined is not None:
            after = stack([after, combined])
            del combined  # it holds all factors of a cohort, and `after` is a copy
        return compute_best_factors(pair, after, state, layout, self.svd, self.fills_base)

    def gather_plain(self, spec: TensorSpec, state: State, cohort: Cohort) -> Tensor:
        """Return the global value plus the combined delta."""
        finite = [
            (d, p) for u, p in zip(cohort.updates, cohort.shares, strict=True) if _is_finite(d := u.delta[spec.name])
        ]
        deltas, shares = [d for d, _ in finite], [p for _, p in finite]
        combined = self.combine_plain(deltas, shares) if deltas else torch.zeros_like(state[spec.name])
        return state[spec.name] + combined


def _is_finite(*tensors: Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


@dataclass(frozen=True)
class ReweighingStrategy(RobustStrategy):
    """sum_k c_k D_k, where the coefficients c_k depend on the inner products of the whole updates."""

    needs_products: ClassVar[bool] = True
    """Whether the coefficients depend on all inner products, which take some hundred times as long as the lengths."""

    def compute_shares(
        self, pairs: Sequence[LoraPair], plain: Sequence[Sequence[TensorSpec]], read: Read
    ) -> tuple[float, ...]:
        """Return the coefficients, after a first pass over all layers."""
        shares = super().compute_shares(pairs, plain, read)
        survey = _compute_inner_products if self.needs_products else _compute_squared_lengths
        return self.reweigh(shares, survey(pairs, plain, read, len(shares)))

    def reweigh(self, shares: tuple[float, ...], geometry: Tensor) -> tuple[float, ...]:
        """Return the coefficients; 0 for updates that are not finite.

        Args:
            shares: p_k.
            geometry: (K, K), inner products of the clients' updates, summed over all layers: of the changes of the
                effective weights for LoRA layers, of the deltas elsewhere. Off the diagonal 0 without `needs_products`.
        """
        finite = geometry.diagonal().isfinite()
        result = torch.zeros(len(shares), dtype=torch.float64)
        if finite.any():
            finite_shares = torch.tensor(shares, dtype=torch.float64)[finite]
            result[finite] = self.coefficients(finite_shares / finite_shares.sum(), geometry[finite][:, finite])
        return tuple(result.tolist())

    @abstractmethod
    def coefficients(self, shares: Tensor, geometry: Tensor) -> Tensor:
        """Compute c (K,) from p (K,), which sums to 1, and the inner products (K, K)."""

    def combine(self, pair: LoraPair, cohort: Cohort) -> LowRank | None:
        """Return sum_k c_k D_k over the clients with c_k other than 0."""
        counting = [(u, c) for u, c in zip(cohort.updates, cohort.shares, strict=True) if c != 0]
        if not counting:
            return None
        return Changes.from_updates(pair, [u for u, _ in counting]).compute_weighted_sum([c for _, c in counting])

    def combine_plain(self, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Return sum_k c_k delta_k."""
        return compute_weighted_sum(deltas, shares)


@dataclass(frozen=True)
class CoordinateStrategy(RobustStrategy):
    """A vote on each coordinate, for LoRA layers in a basis that the clients' changes share."""

    basis: int = setting(
        64, "dimensions of the shared basis on either side of a layer; what lies outside is dropped", low=1
    )

    @abstractmethod
    def vote(self, values: Tensor) -> Tensor:
        """Combine the clients' values of each coordinate, (K, ...) to (...)."""

    def combine(self, pair: LoraPair, cohort: Cohort) -> LowRank | None:
        """Return U vote(U^T D_k V) V^T, where U and V are the leading directions of all finite changes."""
        finite_updates = [u for u in cohort.updates if _is_finite(*u.delta.values())]
        if not finite_updates:
            return None
        changes = Changes.from_updates(pair, finite_updates)
        left, right = (basis.to(changes.moved_left.dtype) for basis in changes.compute_bases(self.basis))
        return LowRank(left @ self.vote(changes.compute_coordinates(left, right)), right.T)

    def combine_plain(self, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Return the vote on each entry."""
        return self.vote(torch.stack(list(deltas)))


def compute_middle_mean(values: Tensor, trim: int) -> Tensor:
    """Average over the first axis without the `trim` largest and `trim` smallest values of each coordinate."""
    voters = values.reshape(len(values), -1).T.contiguous()
    if voters.dtype in (torch.float32, torch.float64):  # NumPy sorts rows by the processor's vectors, torch does not
        ordered = torch.from_numpy(np.sort(voters.numpy(), axis=1))
    else:
        ordered = voters.sort(dim=1).values
    ordered = ordered.T.reshape(values.shape)
    return ordered[trim : len(ordered) - trim].mean(dim=0)


def _compute_inner_products(
    pairs: Sequence[LoraPair], plain: Sequence[Sequence[TensorSpec]], read: Read, clients: int
) -> Tensor:
    """Compute all inner products of the updates, (K, K), fp64."""
    geometry = torch.zeros(clients, clients, dtype=torch.float64)
    for pair in pairs:
        geometry += Changes.from_updates(pair, read((pair.A, pair.B))).compute_inner_products()
    for specs in plain:
        updates = read(tuple(t.name for t in specs))
        flat = torch.stack([torch.cat([t.double().flatten() for t in u.delta.values()]) for u in updates])
        geometry += flat @ flat.T
    return geometry


def _compute_squared_lengths(
    pairs: Sequence[LoraPair], plain: Sequence[Sequence[TensorSpec]], read: Read, clients: int
) -> Tensor:
    """Compute the squared lengths of the updates on the diagonal of (K, K), fp64; the rest is 0."""
    squares = torch.zeros(clients, dtype=torch.float64)
    for pair in pairs:
        squares += torch.stack([compute_squared_length(pair, update) for update in read((pair.A, pair.B))])
    for specs in plain:
        for k, update in enumerate(read(tuple(t.name for t in specs))):
            squares[k] += sum(t.double().square().sum() for t in update.delta.values())
    return squares.diag()

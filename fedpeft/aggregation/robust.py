"""Aggregation that some clients try to spoil, in the geometry of what they do to the effective weight.

A client can send (B G, G^-1 A): the same update, arbitrary factors. So rules that look at factors can be fooled, and
can hurt honest clients. Here every rule reads the change of the effective weight, which no G alters,

    D_k = s_k (B_k A_k - B A),

through inner products (Krum, norm bounds) or in a basis that all clients share (median, trimmed mean). The combined
change is added to the global s B A, whose best factors at the global rank are kept. A row count can be a lie: rules
that vote count clients, not rows. Updates with numbers that are not finite are left out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from fedpeft.aggregation.factors import best_factors, change, effective, lora_form
from fedpeft.aggregation.strategy import GatherStrategy
from fedpeft.aggregation.update import Cohort, Gathered, weighted_sum
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, LoraPair, State, TensorSpec
from fedpeft.peft.low_rank import METHODS, LowRank, left_singular_vectors, stack

T = TypeVar("T")


@dataclass(frozen=True)
class RobustStrategy(GatherStrategy):
    """The global weight plus a robust combination of the clients' changes; subclasses say which."""

    svd: str = setting("auto", "method of the SVD; auto: the cheapest exact one", choices=METHODS)
    remainder: str = setting(
        "drop", "what lies beyond the global rank: drop or keep (in the base)", choices=("drop", "keep")
    )

    mixed_ranks: ClassVar[bool] = True
    new_factors: ClassVar[bool] = True

    @abstractmethod
    def combine(self, changes: Sequence[LowRank], shares: Sequence[float]) -> list[tuple[LowRank, float]]:
        """Terms D_i (out, in) and weights w_i: sum_i w_i D_i is the combined change of one layer; of >= 1 client's."""

    @abstractmethod
    def combine_plain(self, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """The combined delta of a tensor outside the LoRA layers, from at least one client's."""

    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """The best factors of s B A plus the combined change."""
        terms = [(effective(pair, state, lora_form(layout)), 1.0)]
        changes, shares = _heard((change(pair, u) for u in cohort.updates), cohort.shares, _factors)
        if changes:
            terms += self.combine(changes, shares)
        after = stack([term for term, _ in terms], [weight for _, weight in terms])
        del changes, terms  # each is a cohort's worth of factors, and `after` is a copy
        return best_factors(pair, after, state, layout, self.svd, self.remainder == "keep")

    def gather_plain(self, spec: TensorSpec, state: State, cohort: Cohort) -> Tensor:
        """The global value plus the combined delta."""
        deltas, shares = _heard((u.delta[spec.name] for u in cohort.updates), cohort.shares, lambda delta: (delta,))
        combined = self.combine_plain(deltas, shares) if deltas else torch.zeros_like(state[spec.name])
        return state[spec.name] + combined


def _factors(matrix: LowRank) -> tuple[Tensor, Tensor]:
    return matrix.left, matrix.right


def _heard(
    parts: Iterable[T], shares: Sequence[float], tensors: Callable[[T], tuple[Tensor, ...]]
) -> tuple[list[T], list[float]]:
    """The clients' parts that are finite, with their shares."""
    kept = [(part, p) for part, p in zip(parts, shares, strict=True) if all(t.isfinite().all() for t in tensors(part))]
    return [part for part, _ in kept], [p for _, p in kept]


@dataclass(frozen=True)
class ReweighingStrategy(RobustStrategy):
    """sum_k c_k D_k, with coefficients c_k that depend on the inner products of the whole updates."""

    surveys: ClassVar[bool] = True

    def reweigh(self, shares: tuple[float, ...], geometry: Tensor) -> tuple[float, ...]:
        """The coefficients; 0 for updates that are not finite."""
        finite = geometry.diagonal().isfinite()
        result = torch.zeros(len(shares), dtype=torch.float64)
        if finite.any():
            heard = torch.tensor(shares, dtype=torch.float64)[finite]
            result[finite] = self.coefficients(heard / heard.sum(), geometry[finite][:, finite])
        return tuple(result.tolist())

    @abstractmethod
    def coefficients(self, shares: Tensor, geometry: Tensor) -> Tensor:
        """c (K,) from p (K,), which sums to 1, and the inner products (K, K)."""

    def combine(self, changes: Sequence[LowRank], shares: Sequence[float]) -> list[tuple[LowRank, float]]:
        """sum_k c_k D_k over the clients that count."""
        return [(D, c) for D, c in zip(changes, shares, strict=True) if c != 0]

    def combine_plain(self, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """sum_k c_k delta_k."""
        return weighted_sum(deltas, shares)


@dataclass(frozen=True)
class CoordinateStrategy(RobustStrategy):
    """A vote on each coordinate, for LoRA layers in a basis that the clients' changes share."""

    basis: int = setting(
        64, "dimensions of the shared basis on either side of a layer; what lies outside is dropped", low=1
    )

    @abstractmethod
    def vote(self, values: Tensor) -> Tensor:
        """(K, ...) to (...): the combined value of each coordinate."""

    def combine(self, changes: Sequence[LowRank], shares: Sequence[float]) -> list[tuple[LowRank, float]]:
        """U vote(U^T D_k V) V^T."""
        U = shared_basis(changes, self.basis)
        V = shared_basis([LowRank(D.right.T, D.left.T) for D in changes], self.basis)
        coordinates = torch.stack([(U.T @ D.left) @ (D.right @ V) for D in changes])
        return [(LowRank(U @ self.vote(coordinates), V.T), 1.0)]

    def combine_plain(self, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """The vote on each entry."""
        return self.vote(torch.stack(list(deltas)))


def shared_basis(changes: Sequence[LowRank], dimensions: int) -> Tensor:
    """The leading eigenvectors of sum_k D_k D_k^T / norm(D_k)^2: (out, dimensions), zero columns where there are none.

    They depend on the D_k alone, not on their factors; each client has the same say, however large its update.
    """
    widths = [min(D.width, D.shape[1]) for D in changes]
    halves = changes[0].left.new_empty(changes[0].shape[0], sum(widths))
    for D, columns in zip(changes, torch.split(halves, widths, dim=1), strict=True):
        columns.copy_(_unit_half(D))
    return left_singular_vectors(halves, dimensions).to(halves.dtype)


def _unit_half(D: LowRank) -> Tensor:
    """H (out, min(q, in)) with H H^T = D D^T / norm(D)^2."""
    _, T = torch.linalg.qr(D.right.T)  # D D^T = (L T^T) (L T^T)^T
    half = D.left @ T.T
    unit: Tensor = half / half.norm().clamp_min(torch.finfo(half.dtype).tiny)
    return unit


def middle_mean(values: Tensor, trim: int) -> Tensor:
    """The mean over the first axis without the `trim` largest and `trim` smallest values of each coordinate."""
    ordered = values.sort(dim=0).values
    return ordered[trim : len(ordered) - trim].mean(dim=0)

"""All clients' changes of one layer's effective weight, over columns and rows that they have in common.

    D_k = s_k (B_k A_k - B A) = s_k (dB_k (A + dA_k) + B dA_k)

B and A, what a client started from, are the same for all clients of one form. So the D_k of K clients of rank r lie in
the span of K r + r columns [dB_1 .. dB_K, B] and as many rows, half as many as those of the stacked D_k; every inner
product of changes follows from the Gram matrices of these columns and rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedpeft.aggregation.update import Update
from fedpeft.peft.adapter import LoraPair
from fedpeft.peft.low_rank import (
    LowRank,
    compute_cholesky_root,
    compute_eigen_root,
    compute_gram_matrix,
    compute_leading_eigenvectors,
    multiply_in_chunks,
)

FAINT = 1e-7
"""A direction whose singular value is below this fraction of the largest is rounding."""


RESOLVED = 1e-12
"""A squared length below this fraction of its factors' is rounding, and counts as this fraction: who hides a change of
nothing behind large factors must not have the say of a whole one, nor a large change the length of a small one."""


@dataclass(frozen=True)
class Changes:
    """The changes D_k of K clients in one layer, as T = sum_k r_k terms of rank one.

    Term t is s_t (dB[:, t] (A[origin_t] + dA[t]) + B[:, origin_t] dA[t]).

    Attributes:
        moved_left, moved_right: dB (out, T) and dA (T, in), one column and row for each term.
        start_left, start_right: B (out, P) and A (P, in), of the states that clients started from, each once.
        owner: int64 (T,), whose term it is, 0 to K - 1, ascending.
        origin: int64 (T,), which column of B and row of A goes with it.
        scales: s_k (K,), fp64.
    """

    moved_left: Tensor
    moved_right: Tensor
    start_left: Tensor
    start_right: Tensor
    owner: Tensor
    origin: Tensor
    scales: Tensor

    @classmethod
    def from_updates(cls, pair: LoraPair, updates: Sequence[Update]) -> Changes:
        """Those of a layer, from at least one client's update."""
        starts: list[tuple[Tensor, Tensor]] = []
        firsts: list[int] = []
        dB, dA, owner, start, scales = [], [], [], [], []
        for k, u in enumerate(updates):
            B, A = u.received[pair.B], u.received[pair.A]
            same = (i for i, known in enumerate(starts) if _is_equal(known, (B, A)))
            group = next(same, len(starts))
            if group == len(starts):
                firsts.append(sum(len(known) for _, known in starts))
                starts.append((B, A))
            dB.append(u.delta.get(pair.B, torch.zeros_like(B)))
            dA.append(u.delta.get(pair.A, torch.zeros_like(A)))
            owner.append(torch.full((len(A),), k))
            start.append(firsts[group] + torch.arange(len(A)))
            scales.append(u.scale)
        return cls(
            torch.cat(dB, 1),
            torch.cat(dA),
            torch.cat([B for B, _ in starts], 1),
            torch.cat([A for _, A in starts]),
            torch.cat(owner),
            torch.cat(start),
            torch.tensor(scales, dtype=torch.float64),
        )

    @cached_property
    def _columns(self) -> Tensor:
        """Gram matrix (T + P, T + P) of the columns [dB, B], fp64."""
        return compute_gram_matrix(self.moved_left.T, self.start_left.T)

    @cached_property
    def _rows(self) -> Tensor:
        """Gram matrix (T + P, T + P) of the rows [dA; A], fp64."""
        return compute_gram_matrix(self.moved_right, self.start_right)

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """Where each term's dB (or dA), and its B (or A), stand in these matrices: (T,) each."""
        return torch.arange(len(self.owner)), len(self.owner) + self.origin

    def compute_inner_products(self) -> Tensor:
        """<D_i, D_j>, (K, K), fp64; not a number where an update is none. No square is below `RESOLVED`."""
        left, right, b, terms = self._columns, self._rows, self._places[1], len(self.owner)
        moved = right[:terms] + right[b]  # the rows A + dA with all
        products = moved[:, :terms] + moved[:, b]
        products *= left[:terms, :terms]
        mixed = left[:terms][:, b] * moved[:, :terms]  # dB of one with B of the other: <A_i + dA_i, dA_j>
        products.add_(mixed, alpha=2)  # and B of one with dB of the other: in the end the mean of both orders
        products.addcmul_(left[b][:, b], right[:terms, :terms])
        weight = self.scales[self.owner]
        products *= weight * weight[:, None]
        by_row = products.new_zeros(len(self.scales), terms).index_add_(0, self.owner, products)
        found = by_row.new_zeros(len(self.scales), len(self.scales)).index_add_(1, self.owner, by_row)
        found = (found + found.T) / 2
        squares = torch.maximum(found.diagonal(), self._least_length)
        found.diagonal().copy_(squares)
        return found

    @property
    def _least_length(self) -> Tensor:
        """Of each client, (K,), the least squared length that is not rounding."""
        left, right, (d, b) = self._columns, self._rows, self._places
        squares = (self._sum_by_client(x) for x in (left[d, d], left[b, b], right[d, d], right[b, b]))
        return compute_resolution(*squares) * self.scales.square()

    def _sum_by_client(self, of_terms: Tensor) -> Tensor:
        """A number of each term (T,), summed over each client's, (K,)."""
        return of_terms.new_zeros(len(self.scales)).index_add_(0, self.owner, of_terms)

    def _find_terms(self, client: int) -> slice:
        """The terms of a client."""
        bounds = torch.searchsorted(self.owner, torch.tensor([client, client + 1])).tolist()
        return slice(*bounds)

    def compute_weighted_sum(self, coefficients: Sequence[float]) -> LowRank:
        """sum_k c_k D_k, of width T + P; clients with c_k = 0 are not read."""
        weight = torch.tensor(coefficients, dtype=torch.float64)[self.owner] * self.scales[self.owner]
        counts = weight != 0
        weight, dA, start = weight[counts].to(self.moved_right.dtype), self.moved_right[counts], self.origin[counts]
        together = self.start_right.new_zeros(self.start_right.shape).index_add_(0, start, dA * weight[:, None])
        used = torch.unique(start)
        left = torch.cat([self.moved_left[:, counts] * weight, self.start_left[:, used]], 1)
        return LowRank(left, torch.cat([self.start_right[start] + dA, together[used]]))

    def compute_bases(self, dimensions: int) -> tuple[Tensor, Tensor]:
        """The leading eigenvectors of sum_k D_k D_k^T / norm(D_k)^2 and of the same sum of D_k^T D_k.

        They depend on the D_k alone, not on their factors; each client has the same say, however large its update.

        Returns:
            U (out, dimensions) and V (in, dimensions), fp64, with zero columns where there are no directions.
        """
        left, right, (d, b), terms = self._columns, self._rows, self._places, len(self.owner)
        moved = right[:terms] + right[b]  # the rows A + dA with all
        squares = self.compute_inner_products().diagonal() / self.scales.square()
        say = torch.where(squares > 0, 1 / squares, 0.0)[self.owner]
        weight = (self.owner == self.owner[:, None]) * say
        # D D^T = [dB, B] M [dB, B]^T, where M holds the inner products of the rows that the columns go with
        of_columns = torch.zeros_like(left)
        _place(
            of_columns,
            d,
            b,
            (moved[:, :terms] + moved[:, b]) * weight,
            moved[:, :terms] * weight,
            right[:terms, :terms] * weight,
        )
        # D^T D in the same way; the row A + dA goes with dB, dA goes with B
        dd, db, bb = left[:terms, :terms] * weight, left[:terms][:, b] * weight, left[b][:, b] * weight
        of_rows = torch.zeros_like(right)
        _place(of_rows, d, b, dd + db + db.T + bb, dd + db.T, dd)
        return (
            _compute_eigenvectors((self.moved_left, self.start_left), left, of_columns, dimensions),
            _compute_eigenvectors((self.moved_right.T, self.start_right.T), right, of_rows, dimensions),
        )

    def compute_coordinates(self, U: Tensor, V: Tensor) -> Tensor:
        """U^T D_k V of each client, (K, u, v), in the factors' precision."""
        dB, B = U.T.to(self.moved_left.dtype) @ self.moved_left, U.T.to(self.start_left.dtype) @ self.start_left
        dA, A = self.moved_right @ V.to(self.moved_right.dtype), self.start_right @ V.to(self.start_right.dtype)
        found = []
        for k, scale in enumerate(self.scales.tolist()):
            own = self._find_terms(k)
            moved = A[self.origin[own]] + dA[own]
            found.append(scale * (dB[:, own] @ moved + B[:, self.origin[own]] @ dA[own]))
        return torch.stack(found)


def compute_squared_length(pair: LoraPair, update: Update) -> Tensor:
    """norm(D_k)^2 of one client in a layer, fp64."""
    B, A = update.received[pair.B].double(), update.received[pair.A].double()
    dB = update.delta[pair.B].double() if pair.B in update.delta else torch.zeros_like(B)
    dA = update.delta[pair.A].double() if pair.A in update.delta else torch.zeros_like(A)
    left, right = torch.cat([dB, B], 1), torch.cat([A + dA, dA])
    square = ((left.T @ left) * (right @ right.T)).sum()
    least = compute_resolution(*(factor.square().sum() for factor in (dB, B, dA, A)))
    return update.scale**2 * torch.maximum(square, least)


def compute_resolution(dB: Tensor, B: Tensor, dA: Tensor, A: Tensor) -> Tensor:
    """The least squared length of dB (A + dA) + B dA that is not rounding, from the squared lengths of all four."""
    dB, B, dA, A = (square.sqrt() for square in (dB, B, dA, A))
    return RESOLVED * (dB * (A + dA) + B * dA).square()


def _is_equal(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(a is b or (a.shape == b.shape and torch.equal(a, b)) for a, b in zip(one, other, strict=True))


def _place(matrix: Tensor, d: Tensor, b: Tensor, dd: Tensor, db: Tensor, bb: Tensor) -> None:
    """Add the blocks dd, db (and its transpose bd), and bb, each (T, T), to the rows and columns of a Gram matrix."""
    for rows, to_d, to_b in ((d, dd, db), (b, db.T, bb)):
        wide = matrix.new_zeros(len(d), len(matrix)).index_add_(1, d, to_d).index_add_(1, b, to_b)
        matrix.index_add_(0, rows, wide)


def _compute_eigenvectors(parts: Sequence[Tensor], gram: Tensor, middle: Tensor, count: int) -> Tensor:
    """The leading eigenvectors (n, count) of X M X^T, from the Gram matrix of the columns of X = [X_1, X_2]; fp64."""
    lengths = gram.diagonal().sqrt()
    unit = torch.where(lengths > 0, lengths, 1.0)  # columns made equally long, so that M hides no direction
    equal = middle * lengths * lengths[:, None]
    C = compute_cholesky_root(equal) or compute_eigen_root(equal)
    values, vectors = compute_leading_eigenvectors(
        C.transform(gram / unit / unit[:, None]), min(count, C.matrix.shape[1])
    )
    sizes = values.clamp_min(0.0).sqrt()
    weights = torch.split((C.matrix @ vectors) / unit[:, None], [part.shape[1] for part in parts])
    found = sum(multiply_in_chunks(part, W) for part, W in zip(parts, weights, strict=True))
    found = found / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)
    return torch.nn.functional.pad(found * (sizes > FAINT * sizes[:1]), (0, count - found.shape[1]))

"""All clients' changes of one layer's effective weight, over common columns and rows.

    D_k = s_k (B_k A_k - B A) = s_k (dB_k (A + dA_k) + B dA_k)

Clients of one form start from the same B and A. So the D_k of K clients of rank r lie in the span of the K r + r
columns [dB_1 .. dB_K, B] and as many rows, half as many as those of the stacked D_k. All inner products of changes
follow from the Gram matrices of these columns and rows.
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
"""A squared length below this fraction of its factors' is rounding, and counts as this fraction.

A client could otherwise hide a zero change behind large factors and count as much as others, or make a large change
look small.
"""


@dataclass(frozen=True)
class Changes:
    """The changes D_k of K clients in one layer, as T = sum_k r_k terms of rank one.

    Term t is s_t (dB[:, t] (A[origin_t] + dA[t]) + B[:, origin_t] dA[t]).

    Attributes:
        moved_left: dB (out, T), a column for each term.
        moved_right: dA (T, in), a row for each term.
        start_left: B (out, P) of the states that clients started from, each once.
        start_right: A (P, in) of these states.
        owner: int64 (T,), the client of each term, 0 to K - 1, ascending.
        origin: int64 (T,), the column of B and row of A of each term.
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
        """Return the changes of a layer, from the updates of at least one client."""
        starts: list[tuple[Tensor, Tensor]] = []
        firsts: list[int] = []
        up_delta, down_delta, owner, start, scales = [], [], [], [], []
        for k, u in enumerate(updates):
            up, down = u.received[pair.B], u.received[pair.A]
            same = (i for i, known in enumerate(starts) if _is_equal(known, (up, down)))
            group = next(same, len(starts))
            if group == len(starts):
                firsts.append(sum(len(known) for _, known in starts))
                starts.append((up, down))
            up_delta.append(u.delta.get(pair.B, torch.zeros_like(up)))
            down_delta.append(u.delta.get(pair.A, torch.zeros_like(down)))
            owner.append(torch.full((len(down),), k))
            start.append(firsts[group] + torch.arange(len(down)))
            scales.append(u.scale)
        return cls(
            torch.cat(up_delta, 1),
            torch.cat(down_delta),
            torch.cat([up for up, _ in starts], 1),
            torch.cat([down for _, down in starts]),
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
        """Positions of each term's dB (or dA) and of its B (or A) in these matrices, (T,) each."""
        return torch.arange(len(self.owner)), len(self.owner) + self.origin

    def compute_inner_products(self) -> Tensor:
        """Compute <D_i, D_j>, (K, K), fp64; NaN for updates with NaN. No square is below `RESOLVED`."""
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
        """Least squared length of each client's change that is not rounding, (K,)."""
        left, right, (d, b) = self._columns, self._rows, self._places
        squares = (self._sum_by_client(x) for x in (left[d, d], left[b, b], right[d, d], right[b, b]))
        return compute_resolution(*squares) * self.scales.square()

    def _sum_by_client(self, of_terms: Tensor) -> Tensor:
        """Sum a number of each term (T,) over each client's terms, (K,)."""
        return of_terms.new_zeros(len(self.scales)).index_add_(0, self.owner, of_terms)

    def _find_terms(self, client: int) -> slice:
        """Return the slice of a client's terms."""
        bounds = torch.searchsorted(self.owner, torch.tensor([client, client + 1])).tolist()
        return slice(*bounds)

    def compute_weighted_sum(self, coefficients: Sequence[float]) -> LowRank:
        """Return sum_k c_k D_k, of width T + P, without reading clients with c_k = 0."""
        weight = torch.tensor(coefficients, dtype=torch.float64)[self.owner] * self.scales[self.owner]
        counts = weight != 0
        weight, start = weight[counts].to(self.moved_right.dtype), self.origin[counts]
        down_delta = self.moved_right[counts]
        together = self.start_right.new_zeros(self.start_right.shape).index_add_(0, start, down_delta * weight[:, None])
        used = torch.unique(start)
        left = torch.cat([self.moved_left[:, counts] * weight, self.start_left[:, used]], 1)
        return LowRank(left, torch.cat([self.start_right[start] + down_delta, together[used]]))

    def compute_bases(self, dimensions: int) -> tuple[Tensor, Tensor]:
        """Compute the leading eigenvectors of sum_k D_k D_k^T / norm(D_k)^2 and of the same sum of D_k^T D_k.

        They depend on the D_k, not on their factors. All clients have the same influence, however large their updates.

        Returns:
            U (out, dimensions) and V (in, dimensions), fp64, with zero columns if there are fewer directions.
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

    def compute_coordinates(self, left_basis: Tensor, right_basis: Tensor) -> Tensor:
        """Compute U^T D_k V of each client, (K, u, v), in the factors' precision."""
        up_delta = left_basis.T.to(self.moved_left.dtype) @ self.moved_left
        up = left_basis.T.to(self.start_left.dtype) @ self.start_left
        down_delta = self.moved_right @ right_basis.to(self.moved_right.dtype)
        down = self.start_right @ right_basis.to(self.start_right.dtype)
        found = []
        for k, scale in enumerate(self.scales.tolist()):
            own = self._find_terms(k)
            moved = down[self.origin[own]] + down_delta[own]
            found.append(scale * (up_delta[:, own] @ moved + up[:, self.origin[own]] @ down_delta[own]))
        return torch.stack(found)


def compute_squared_length(pair: LoraPair, update: Update) -> Tensor:
    """Compute norm(D_k)^2 of one client in a layer, fp64."""
    up, down = update.received[pair.B].double(), update.received[pair.A].double()
    up_delta = update.delta[pair.B].double() if pair.B in update.delta else torch.zeros_like(up)
    down_delta = update.delta[pair.A].double() if pair.A in update.delta else torch.zeros_like(down)
    left, right = torch.cat([up_delta, up], 1), torch.cat([down + down_delta, down_delta])
    square = ((left.T @ left) * (right @ right.T)).sum()
    least = compute_resolution(*(factor.square().sum() for factor in (up_delta, up, down_delta, down)))
    return update.scale**2 * torch.maximum(square, least)


def compute_resolution(up_delta: Tensor, up: Tensor, down_delta: Tensor, down: Tensor) -> Tensor:
    """Compute the least squared length of dB (A + dA) + B dA that is not rounding, from the four squared lengths."""
    up_delta, up, down_delta, down = (square.sqrt() for square in (up_delta, up, down_delta, down))
    return RESOLVED * (up_delta * (down + down_delta) + up * down_delta).square()


def _is_equal(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(a is b or (a.shape == b.shape and torch.equal(a, b)) for a, b in zip(one, other, strict=True))


def _place(matrix: Tensor, d: Tensor, b: Tensor, dd: Tensor, db: Tensor, bb: Tensor) -> None:
    """Add the blocks dd, db (and its transpose bd), and bb, each (T, T), to the rows and columns of a Gram matrix."""
    for rows, to_d, to_b in ((d, dd, db), (b, db.T, bb)):
        wide = matrix.new_zeros(len(d), len(matrix)).index_add_(1, d, to_d).index_add_(1, b, to_b)
        matrix.index_add_(0, rows, wide)


def _compute_eigenvectors(parts: Sequence[Tensor], gram: Tensor, middle: Tensor, count: int) -> Tensor:
    """Compute the leading eigenvectors (n, count) of X M X^T, fp64.

    Args:
        parts: X_1 and X_2, which form X = [X_1, X_2].
        gram: Gram matrix of the columns of X.
        middle: M.
        count: number of eigenvectors; missing ones are 0.
    """
    lengths = gram.diagonal().sqrt()
    unit = torch.where(lengths > 0, lengths, 1.0)  # columns made equally long, so that M hides no direction
    equal = middle * lengths * lengths[:, None]
    root = compute_cholesky_root(equal) or compute_eigen_root(equal)
    values, vectors = compute_leading_eigenvectors(
        root.transform(gram / unit / unit[:, None]), min(count, root.matrix.shape[1])
    )
    sizes = values.clamp_min(0.0).sqrt()
    weights = torch.split((root.matrix @ vectors) / unit[:, None], [part.shape[1] for part in parts])
    found = sum(multiply_in_chunks(part, W) for part, W in zip(parts, weights, strict=True))
    found = found / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)
    return torch.nn.functional.pad(found * (sizes > FAINT * sizes[:1]), (0, count - found.shape[1]))

"""Linear algebra on products of thin factors; the full matrix is formed only if that is cheaper.

Shapes: a matrix X of shape (out, in) is L R with L (out, q) and R (q, in); q is called its width. A cohort's weighted
sum of LoRA products has width q = sum_k r_k: at 100 clients of rank 8 still far below a 4096 x 4096 matrix.

Truncated SVDs, and what each of them costs (see `CostModel`):

    qr          L = Q_L T_L, R^T = Q_R T_R; SVD of the core T_L T_R^T. As accurate as an SVD of X.
    gram        R R^T = C C^T, so the rows of C^-1 R are orthonormal and the Gram matrix of L C holds the squared
                singular values. Squaring halves the digits: done in fp64, right for fp32 factors. If X is smaller
                than its factors, it is formed and its smaller Gram matrix is used.
    dense       form X, then LAPACK.
    randomised  range finder with power iterations on the factors (Halko, Martinsson, Tropp, arXiv 0909.4061). Inexact
                if the spectrum is flat, so it is never chosen automatically.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from fedpeft.errors import ConfigError
from fedpeft.parts import suggest_legal

Method = Literal["auto", "qr", "gram", "dense", "randomised"]
METHODS: tuple[Method, ...] = ("auto", "qr", "gram", "dense", "randomised")
"""How a truncated SVD is computed; `auto` is the cheapest of the methods that are exact at the factors' precision."""


@dataclass(frozen=True)
class LowRank:
    """A matrix of shape (out, in) as a product `left @ right`: left (out, q), right (q, in)."""

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (out, in) of the matrix."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def width(self) -> int:
        """Width q, an upper bound of the rank."""
        return self.left.shape[1]

    @property
    def numel(self) -> int:
        """Number of entries of both factors."""
        return self.left.numel() + self.right.numel()

    def to_dense(self) -> Tensor:
        """Compute the product (out, in)."""
        return self.left @ self.right

    def scale(self, factor: float) -> LowRank:
        """Return `factor` times the matrix."""
        return LowRank(self.left * factor, self.right)

    def norm(self) -> float:
        """Compute the Frobenius norm sqrt(tr(L^T L R R^T)) in fp64, exact to about 1e-8 of the factors' norms."""
        return float(compute_inner_products([self])[0, 0].clamp_min(0.0).sqrt())


def stack(products: Sequence[LowRank], weights: Sequence[float] | None = None) -> LowRank:
    """Return sum_k w_k L_k R_k as one product of width sum_k q_k: [w_1 L_1, ..., w_K L_K] [R_1; ...; R_K]."""
    joined = LowRank(torch.cat([p.left for p in products], dim=1), torch.cat([p.right for p in products], dim=0))
    if weights is not None:
        joined.left.mul_(_expand_by_column(products, torch.tensor(weights, dtype=joined.left.dtype)))
    return joined


def merge_copies(product: LowRank) -> LowRank:
    """Merge columns of `left` that are multiples of one another, and sum their rows; the matrix stays the same.

    Copies leave a Gram matrix singular, so that Cholesky's factorization fails. They occur because clients of smaller
    ranks start from columns of the global B, each at its own scale.
    """
    left, places = product.left, torch.arange(product.width)
    sizes = left.abs().amax(dim=0)
    unit = torch.where(sizes > 0, sizes, 1.0)
    glance = left[:: max(1, len(left) // 8)] / unit
    _, group = torch.unique(glance.T, dim=0, return_inverse=True)
    first = torch.full_like(places, product.width).scatter_reduce(0, group, places, "amin")[group]
    copies = torch.nonzero(first != places).flatten()
    of = first[copies]
    same = (left[:, copies] / unit[copies] == left[:, of] / unit[of]).all(dim=0)
    if not same.any():
        return product
    copies, of = copies[same], of[same]
    right = product.right.index_add(0, of, product.right[copies] * (unit[copies] / unit[of])[:, None])
    kept = torch.ones(product.width, dtype=torch.bool).index_fill_(0, copies, False)
    return LowRank(left[:, kept], right[kept])


def _expand_by_column(products: Sequence[LowRank], values: Tensor) -> Tensor:
    """Return, for each column of the stack, the entry of `values` (K,) that belongs to its product."""
    return torch.repeat_interleave(values, torch.tensor([p.width for p in products]))


def compute_inner_products(products: Sequence[LowRank]) -> Tensor:
    """Compute the (K, K) matrix of <X_i, X_j> = tr(X_i^T X_j) in fp64 from the Gram matrices of the stacked factors."""
    columns = compute_gram_matrix(*(p.left.T for p in products)).mul_(compute_gram_matrix(*(p.right for p in products)))
    owner = _expand_by_column(products, torch.arange(len(products)))
    rows = torch.zeros(len(products), len(owner), dtype=torch.float64).index_add_(0, owner, columns)
    return torch.zeros(len(products), len(products), dtype=torch.float64).index_add_(1, owner, rows)


@dataclass(frozen=True)
class TruncatedSVD:
    """Leading r singular triplets: U (out, r), S (r,) descending, Vt (r, in)."""

    U: Tensor
    S: Tensor
    Vt: Tensor

    def to_low_rank(self) -> LowRank:
        """Return U S Vt with the singular values in the left factor."""
        return LowRank(self.U * self.S, self.Vt)


@dataclass(frozen=True)
class CostModel:
    """Predicted seconds of each exact method on one core; only their order matters.

    The constants are seconds per elementary step, fitted by `python -m experiments.aggregation --only costs` on one
    AVX-512 core with MKL; another machine changes them all by a similar factor, so the choice is stable.
    """

    multiply: float = 4.2e-11
    """per multiply-add of an fp64 matrix product"""
    factorise: float = 1.2e-10
    """per m n^2 of an fp64 QR of (m, n) with Q formed"""
    eigen: float = 0.8e-10
    """per n^3 of an fp64 symmetric eigendecomposition for a few of the vectors"""
    singular: float = 4.2e-10
    """per m n^2, m >= n, of an fp64 SVD"""
    call: float = 2e-5
    """per LAPACK call"""

    def predict_seconds(self, method: Method, out: int, in_: int, width: int, rank: int) -> float:
        """Predict the seconds of `method` on a product of shapes (out, width) (width, in_), truncated to `rank`."""
        if method == "qr":
            left, right = min(out, width), min(in_, width)
            core = max(left, right) * min(left, right) ** 2
            return (
                self.factorise * width * (out * left + in_ * right)
                + self.singular * core
                + self.multiply * (left * right * width + rank * (out * left + in_ * right))
                + 3 * self.call
            )
        if method == "gram" and width > min(out, in_):
            short, long = sorted((out, in_))
            multiplies = out * in_ * width + short * long * (0.6 * short + rank)
            return self.multiply * multiplies + self.eigen * short**3 + self.call
        if method == "gram":
            multiplies = width**2 * (0.6 * (out + in_) + 2 * width) + width * rank * (out + in_)
            return self.multiply * multiplies + self.eigen * width**3 + 2 * self.call
        if method == "dense":
            return self.multiply * out * in_ * width + self.singular * max(out, in_) * min(out, in_) ** 2 + self.call
        return float("inf")

    def choose_cheapest(self, out: int, in_: int, width: int, rank: int, dtype: torch.dtype) -> Method:
        """Choose the cheapest method that is exact for factors of `dtype`; `gram` is not exact for fp64."""
        legal: list[Method] = ["qr", "dense"] if dtype == torch.float64 else ["qr", "gram", "dense"]
        return min(legal, key=lambda method: self.predict_seconds(method, out, in_, width, rank))


COSTS = CostModel()


def compute_truncated_svd(product: LowRank, rank: int, method: str = "auto") -> TruncatedSVD:
    """Compute the best approximation of rank `rank` (Eckart-Young), in the dtype of the factors.

    `rank` may exceed the rank of the matrix: the surplus singular values are 0, and so are their vectors.

    Raises:
        ConfigError: `method` is unknown.
    """
    if method == "auto":
        method = COSTS.choose_cheapest(*product.shape, product.width, rank, product.left.dtype)
    if method not in _METHODS:
        raise ConfigError(f"FP1241 unknown SVD method {method!r}; {suggest_legal(method, METHODS)}")
    left, singular, right = _METHODS[method](product, rank)
    kept = min(rank, singular.shape[0])
    alive = (singular[:kept] > singular[:1] * _ZERO[method]).to(singular.dtype)
    dtype, surplus = product.left.dtype, rank - kept
    return TruncatedSVD(
        torch.nn.functional.pad(left[:, :kept] * alive, (0, surplus)).to(dtype),
        torch.nn.functional.pad(singular[:kept] * alive, (0, surplus)).to(dtype),
        torch.nn.functional.pad(right[:kept] * alive[:, None], (0, 0, 0, surplus)).to(dtype),
    )


Triplets = tuple[Tensor, Tensor, Tensor]


def _decompose_by_qr(product: LowRank, rank: int) -> Triplets:
    left_basis, left_core = torch.linalg.qr(product.left.double())
    right_basis, right_core = torch.linalg.qr(product.right.double().T)
    left, singular, right = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    return left_basis @ left[:, :rank], singular, right[:rank] @ right_basis.T


def _decompose_by_gram(product: LowRank, rank: int) -> Triplets:
    if product.width > min(product.shape):
        return _decompose_one_sided(product.left.double() @ product.right.double(), rank)
    product = merge_copies(product)
    left, right = product.left.T, product.right
    left_gram, right_gram = compute_gram_matrix(left), compute_gram_matrix(right)
    # (L t) (R / t): scale each column of L to the length of its row of R, or a Gram matrix would hide a direction.
    t = (right_gram.diagonal() / left_gram.diagonal()) ** 0.25
    t = torch.where(t.isfinite() & (t > 0), t, torch.ones_like(t))
    left_gram.mul_(t).mul_(t[:, None])
    right_gram.div_(t).div_(t[:, None])
    root = compute_cholesky_root(right_gram)  # R / t = C Q with orthonormal rows Q = C^-1 (R / t)
    # If rows are nearly parallel and columns are not, compute the same from the other side.
    if root is None and (other := compute_cholesky_root(left_gram)) is not None:
        right_vectors, singular, left_vectors = _decompose_by_root(right, 1 / t, left, t, right_gram, other, rank)
        return left_vectors.T, singular, right_vectors.T
    return _decompose_by_root(left, t, right, 1 / t, left_gram, root or compute_eigen_root(right_gram), rank)


def _decompose_by_root(
    left: Tensor, t: Tensor, right: Tensor, u: Tensor, left_gram: Tensor, root: GramRoot, rank: int
) -> Triplets:
    """Compute the leading triplets of (t L)^T (u R) from the Gram matrix of t L and a `root` of that of u R."""
    values, vectors = compute_leading_eigenvectors(root.transform(left_gram), rank)
    singular = values.clamp_min(0.0).sqrt()
    left_vectors = multiply_in_chunks(left.T, t[:, None] * (root.matrix @ vectors)) / singular.clamp_min(
        torch.finfo(singular.dtype).tiny
    )
    return left_vectors, singular, multiply_in_chunks(right.T, root.undo(vectors) * u[:, None]).T


_CHUNK = 1024


def compute_gram_matrix(*parts: Tensor) -> Tensor:
    """Compute X X^T in fp64 for X = [X_1; ..; X_K].

    A chunk of columns is joined and converted at a time, because copies of all factors would dominate the server's
    memory.
    """
    rows = sum(len(part) for part in parts)
    result = np.zeros((rows, rows))
    for begin in range(0, parts[0].shape[1], _CHUNK):
        exact = torch.cat([part[:, begin : begin + _CHUNK] for part in parts]).double().numpy()
        result += exact @ exact.T  # NumPy sees that it is symmetric, and multiplies half of it
    return torch.from_numpy(result)


def multiply_in_chunks(matrix: Tensor, thin: Tensor) -> Tensor:
    """Compute `matrix @ thin` in fp64, a chunk of rows at a time; `thin` has few columns."""
    return torch.cat([matrix[begin : begin + _CHUNK].double() @ thin for begin in range(0, len(matrix), _CHUNK)])


def compute_leading_eigenvectors(symmetric: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Compute the `count` largest eigenvalues, descending, and their eigenvectors with LAPACK's solver for a subset.

    Only the diagonal of `symmetric` and the entries below it are read.
    """
    size = len(symmetric)
    wanted = (max(size - count, 0), size - 1)
    values, vectors = scipy.linalg.eigh(symmetric.numpy(), subset_by_index=wanted, check_finite=False)
    return torch.from_numpy(values).flip(0), torch.from_numpy(vectors).flip(1)


def _decompose_one_sided(matrix: Tensor, rank: int) -> Triplets:
    """Compute the leading triplets of a matrix from the eigenvectors of its smaller Gram matrix."""
    if matrix.shape[0] > matrix.shape[1]:
        right_vectors, singular, left_transposed = _decompose_one_sided(matrix.T, rank)
        return left_transposed.T, singular, right_vectors.T
    values, left = compute_leading_eigenvectors(compute_gram_matrix(matrix), rank)
    singular = values.clamp_min(0.0).sqrt()
    return left, singular, (multiply_in_chunks(matrix.T, left) / singular.clamp_min(torch.finfo(singular.dtype).tiny)).T


@dataclass(frozen=True)
class GramRoot:
    """A root C of a Gram matrix G: C C^T = G.

    Attributes:
        matrix: C (n, m); lower triangular if Cholesky's factorization gave it.
        vectors: the eigenvectors (n, m) of G; None: C comes from Cholesky's factorization.
        values: the square roots (m,) of the eigenvalues of G; None: as for `vectors`.
    """

    matrix: Tensor
    vectors: Tensor | None = None
    values: Tensor | None = None

    def transform(self, gram: Tensor) -> Tensor:
        """Compute C^T X C for a symmetric X (n, n). Only the diagonal and the entries below it are read and valid."""
        if self.vectors is not None:
            return self.matrix.T @ (gram @ self.matrix)
        lower, _ = scipy.linalg.lapack.dsygst(gram.numpy(), self.matrix.numpy(), itype=2, lower=1)
        both: Tensor = torch.from_numpy(lower)
        return both

    def undo(self, columns: Tensor) -> Tensor:
        """Compute C^-T V for V = `columns` (m, k)."""
        if self.vectors is None or self.values is None:
            solved: Tensor = torch.linalg.solve_triangular(self.matrix.T, columns, upper=True)
            return solved
        return self.vectors @ (columns / self.values[:, None])


def compute_cholesky_root(gram: Tensor) -> GramRoot | None:
    """Return the root from Cholesky's factorization; None if the matrix is too close to singular."""
    root, failed = torch.linalg.cholesky_ex(gram)
    pivots = root.diagonal()
    return GramRoot(root) if not failed and pivots.min() > 1e-4 * pivots.max() else None


def compute_eigen_root(gram: Tensor) -> GramRoot:
    """Return the root from eigenvectors, without the directions that are mere rounding."""
    eigenvalues, vectors = torch.linalg.eigh(gram)
    seen = eigenvalues[-1:] * 1e-15 < eigenvalues
    values, vectors = eigenvalues[seen].sqrt(), vectors[:, seen]
    return GramRoot(vectors * values, vectors, values)


def _decompose_dense(product: LowRank, rank: int) -> Triplets:
    left, singular, right = torch.linalg.svd(product.left.double() @ product.right.double(), full_matrices=False)
    return left, singular, right


_OVERSAMPLING, _POWER_ITERATIONS, _SKETCH_SEED = 10, 2, 0


def _decompose_randomized(product: LowRank, rank: int) -> Triplets:
    left, right = product.left, product.right
    size = min(rank + _OVERSAMPLING, *product.shape)
    generator = torch.Generator().manual_seed(_SKETCH_SEED)
    basis = torch.randn(right.shape[1], size, generator=generator, dtype=right.dtype)
    for _ in range(_POWER_ITERATIONS):
        basis, _core = torch.linalg.qr(left @ (right @ basis))
        basis, _core = torch.linalg.qr(right.T @ (left.T @ basis))
    basis, _core = torch.linalg.qr(left @ (right @ basis))
    inner, singular, right_vectors = torch.linalg.svd((basis.T @ left) @ right, full_matrices=False)
    return basis @ inner, singular, right_vectors


_METHODS: dict[str, Callable[[LowRank, int], Triplets]] = {
    "qr": _decompose_by_qr,
    "gram": _decompose_by_gram,
    "dense": _decompose_dense,
    "randomised": _decompose_randomized,
}

# A singular value below this fraction of the largest is rounding of the method, not a direction of the matrix.
_ZERO = {"qr": 1e-13, "gram": 1e-7, "dense": 1e-13, "randomised": 1e-6}


def recompress(product: LowRank, tolerance: float) -> LowRank:
    """Return the product at the smallest width that keeps its energy.

    Args:
        product: the matrix X.
        tolerance: share of norm(X)^2 that may be lost; above 0.

    Returns:
        A product of width at least 1.
    """
    svd = compute_truncated_svd(product, min(product.width, *product.shape))
    energy = svd.S.double().square()
    total = float(energy.sum())
    width = int((total - energy.cumsum(0) > tolerance * total).sum()) + 1
    return LowRank(svd.U[:, :width] * svd.S[:width], svd.Vt[:width])

"""Linear algebra on matrices known as products of thin factors; the full matrix is formed only where that is cheaper.

Shapes: a matrix X of shape (out, in) is L R with L (out, q) and R (q, in); q is called its width. A cohort's weighted
sum of LoRA products has width q = sum_k r_k: at 100 clients of rank 8 still far below a 4096 x 4096 matrix.

Truncated SVDs, and what each of them costs (see `CostModel`):

    qr          L = Q_L T_L, R^T = Q_R T_R; SVD of the core T_L T_R^T. As accurate as an SVD of X.
    gram        R R^T = C C^T, so the rows of C^-1 R are orthonormal and the Gram matrix of L C holds the squared
                singular values. Squaring halves the digits: done in fp64, right for fp32 factors. Where X is smaller
                than its factors it is formed, and its smaller Gram matrix taken.
    dense       form X, then LAPACK.
    randomised  range finder with power iterations on the factors (Halko, Martinsson, Tropp, arXiv 0909.4061). Inexact
                where the spectrum is flat, hence never chosen silently.
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
        """(out, in)."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def width(self) -> int:
        """q, an upper bound of the rank."""
        return self.left.shape[1]

    @property
    def numel(self) -> int:
        """How many numbers the factors hold."""
        return self.left.numel() + self.right.numel()

    def to_dense(self) -> Tensor:
        """The product, (out, in)."""
        return self.left @ self.right

    def scale(self, factor: float) -> LowRank:
        """`factor` times the matrix."""
        return LowRank(self.left * factor, self.right)

    def norm(self) -> float:
        """Frobenius norm, sqrt(tr(L^T L R R^T)), in fp64; about 1e-8 of the factors' norms is its resolution."""
        return float(compute_inner_products([self])[0, 0].clamp_min(0.0).sqrt())


def stack(products: Sequence[LowRank], weights: Sequence[float] | None = None) -> LowRank:
    """sum_k w_k L_k R_k as one product of width sum_k q_k: [w_1 L_1, ..., w_K L_K] [R_1; ...; R_K]."""
    joined = LowRank(torch.cat([p.left for p in products], dim=1), torch.cat([p.right for p in products], dim=0))
    if weights is not None:
        joined.left.mul_(_expand_by_column(products, torch.tensor(weights, dtype=joined.left.dtype)))
    return joined


def merge_copies(product: LowRank) -> LowRank:
    """The same matrix, with columns of `left` that are multiples of one another taken once; their rows are summed.

    Copies leave a Gram matrix singular, for which there is no Cholesky factorisation. Clients of smaller ranks start
    from columns of the global B, each at a scale of its own.
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
    """For each column of the stack the value (of `values`, (K,)) of the product it belongs to."""
    return torch.repeat_interleave(values, torch.tensor([p.width for p in products]))


def compute_inner_products(products: Sequence[LowRank]) -> Tensor:
    """The (K, K) matrix of <X_i, X_j> = tr(X_i^T X_j), in fp64, through the Gram matrices of the stacked factors."""
    columns = compute_gram_matrix(*(p.left.T for p in products)).mul_(compute_gram_matrix(*(p.right for p in products)))
    owner = _expand_by_column(products, torch.arange(len(products)))
    rows = torch.zeros(len(products), len(owner), dtype=torch.float64).index_add_(0, owner, columns)
    return torch.zeros(len(products), len(products), dtype=torch.float64).index_add_(1, owner, rows)


@dataclass(frozen=True)
class TruncatedSVD:
    """The leading r singular triplets: U (out, r), S (r,) descending, Vt (r, in)."""

    U: Tensor
    S: Tensor
    Vt: Tensor

    def to_low_rank(self) -> LowRank:
        """U S Vt with the singular values in the left factor."""
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
        """Predicted seconds of `method` on a product of shapes (out, width) (width, in_), truncated to `rank`."""
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
        """The cheapest method that is exact for factors of `dtype`; `gram` is not for fp64."""
        legal: list[Method] = ["qr", "dense"] if dtype == torch.float64 else ["qr", "gram", "dense"]
        return min(legal, key=lambda method: self.predict_seconds(method, out, in_, width, rank))


COSTS = CostModel()


def compute_truncated_svd(product: LowRank, rank: int, method: str = "auto") -> TruncatedSVD:
    """The best approximation of rank `rank` (Eckart-Young), in the dtype of the factors.

    `rank` may exceed what the matrix has: the surplus singular values are 0 and their vectors are zero too.

    Raises:
        ConfigError: an unknown method.
    """
    if method == "auto":
        method = COSTS.choose_cheapest(*product.shape, product.width, rank, product.left.dtype)
    if method not in _METHODS:
        raise ConfigError(f"FP1241 unknown SVD method {method!r}; {suggest_legal(method, METHODS)}")
    U, S, Vt = _METHODS[method](product, rank)
    kept = min(rank, S.shape[0])
    alive = (S[:kept] > S[:1] * _ZERO[method]).to(S.dtype)
    dtype, surplus = product.left.dtype, rank - kept
    return TruncatedSVD(
        torch.nn.functional.pad(U[:, :kept] * alive, (0, surplus)).to(dtype),
        torch.nn.functional.pad(S[:kept] * alive, (0, surplus)).to(dtype),
        torch.nn.functional.pad(Vt[:kept] * alive[:, None], (0, 0, 0, surplus)).to(dtype),
    )


Triplets = tuple[Tensor, Tensor, Tensor]


def _decompose_by_qr(product: LowRank, rank: int) -> Triplets:
    Q_L, T_L = torch.linalg.qr(product.left.double())
    Q_R, T_R = torch.linalg.qr(product.right.double().T)
    U, S, Vt = torch.linalg.svd(T_L @ T_R.T, full_matrices=False)
    return Q_L @ U[:, :rank], S, Vt[:rank] @ Q_R.T


def _decompose_by_gram(product: LowRank, rank: int) -> Triplets:
    if product.width > min(product.shape):
        return _decompose_one_sided(product.left.double() @ product.right.double(), rank)
    product = merge_copies(product)
    L, R = product.left.T, product.right
    L_gram, R_gram = compute_gram_matrix(L), compute_gram_matrix(R)
    # Each column of L made as long as its row of R, so that neither Gram matrix hides a direction: (L t) (R / t).
    t = (R_gram.diagonal() / L_gram.diagonal()) ** 0.25
    t = torch.where(t.isfinite() & (t > 0), t, torch.ones_like(t))
    L_gram.mul_(t).mul_(t[:, None])
    R_gram.div_(t).div_(t[:, None])
    C = compute_cholesky_root(R_gram)  # R / t = C Q with orthonormal rows Q = C^-1 (R / t)
    if (
        C is None and (other := compute_cholesky_root(L_gram)) is not None
    ):  # rows alike, columns not: the same from that side
        V, S, Ut = _decompose_by_root(R, 1 / t, L, t, R_gram, other, rank)
        return Ut.T, S, V.T
    return _decompose_by_root(L, t, R, 1 / t, L_gram, C or compute_eigen_root(R_gram), rank)


def _decompose_by_root(L: Tensor, t: Tensor, R: Tensor, u: Tensor, L_gram: Tensor, C: GramRoot, rank: int) -> Triplets:
    """The leading triplets of (t L)^T (u R), from the Gram matrix of t L and a root of that of u R."""
    values, V = compute_leading_eigenvectors(C.transform(L_gram), rank)
    S = values.clamp_min(0.0).sqrt()
    U = multiply_in_chunks(L.T, t[:, None] * (C.matrix @ V)) / S.clamp_min(torch.finfo(S.dtype).tiny)
    return U, S, multiply_in_chunks(R.T, C.undo(V) * u[:, None]).T


_CHUNK = 1024


def compute_gram_matrix(*parts: Tensor) -> Tensor:
    """X X^T in fp64, of X = [X_1; ..; X_K].

    A chunk of columns is joined and converted at a time: at the server's sizes copies of the factors are what memory
    goes to.
    """
    rows = sum(len(part) for part in parts)
    result = np.zeros((rows, rows))
    for begin in range(0, parts[0].shape[1], _CHUNK):
        exact = torch.cat([part[:, begin : begin + _CHUNK] for part in parts]).double().numpy()
        result += exact @ exact.T  # NumPy sees that it is symmetric, and multiplies half of it
    return torch.from_numpy(result)


def multiply_in_chunks(X: Tensor, W: Tensor) -> Tensor:
    """X W in fp64, a chunk of rows at a time; W is thin."""
    return torch.cat([X[begin : begin + _CHUNK].double() @ W for begin in range(0, len(X), _CHUNK)])


def compute_leading_eigenvectors(symmetric: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues, descending, and their eigenvectors; LAPACK's solver for a few, not for all.

    Of the symmetric matrix only the diagonal and what is below it are read.
    """
    size = len(symmetric)
    wanted = (max(size - count, 0), size - 1)
    values, vectors = scipy.linalg.eigh(symmetric.numpy(), subset_by_index=wanted, check_finite=False)
    return torch.from_numpy(values).flip(0), torch.from_numpy(vectors).flip(1)


def _decompose_one_sided(X: Tensor, rank: int) -> Triplets:
    """The leading triplets of a matrix from the eigenvectors of its smaller Gram matrix."""
    if X.shape[0] > X.shape[1]:
        V, S, Ut = _decompose_one_sided(X.T, rank)
        return Ut.T, S, V.T
    values, U = compute_leading_eigenvectors(compute_gram_matrix(X), rank)
    S = values.clamp_min(0.0).sqrt()
    return U, S, (multiply_in_chunks(X.T, U) / S.clamp_min(torch.finfo(S.dtype).tiny)).T


@dataclass(frozen=True)
class GramRoot:
    """C with C C^T = G, for a Gram matrix G.

    Attributes:
        matrix: C (n, m); lower triangular where it comes from Cholesky's factorisation.
        vectors, values: of G, where it comes from them: (n, m), and (m,) square roots.
    """

    matrix: Tensor
    vectors: Tensor | None = None
    values: Tensor | None = None

    def transform(self, gram: Tensor) -> Tensor:
        """C^T X C of a symmetric X (n, n): the diagonal and what is below it; what is above may be anything."""
        if self.vectors is not None:
            return self.matrix.T @ (gram @ self.matrix)
        lower, _ = scipy.linalg.lapack.dsygst(gram.numpy(), self.matrix.numpy(), itype=2, lower=1)
        both: Tensor = torch.from_numpy(lower)
        return both

    def undo(self, V: Tensor) -> Tensor:
        """C^-T V, of V (m, k)."""
        if self.vectors is None or self.values is None:
            solved: Tensor = torch.linalg.solve_triangular(self.matrix.T, V, upper=True)
            return solved
        return self.vectors @ (V / self.values[:, None])


def compute_cholesky_root(gram: Tensor) -> GramRoot | None:
    """By Cholesky's factorisation; None where that is near its limits."""
    C, failed = torch.linalg.cholesky_ex(gram)
    pivots = C.diagonal()
    return GramRoot(C) if not failed and pivots.min() > 1e-4 * pivots.max() else None


def compute_eigen_root(gram: Tensor) -> GramRoot:
    """By eigenvectors; directions that are rounding are left out."""
    D, E = torch.linalg.eigh(gram)
    seen = D[-1:] * 1e-15 < D
    values, E = D[seen].sqrt(), E[:, seen]
    return GramRoot(E * values, E, values)


def _decompose_dense(product: LowRank, rank: int) -> Triplets:
    U, S, Vt = torch.linalg.svd(product.left.double() @ product.right.double(), full_matrices=False)
    return U, S, Vt


_OVERSAMPLING, _POWER_ITERATIONS, _SKETCH_SEED = 10, 2, 0


def _decompose_randomized(product: LowRank, rank: int) -> Triplets:
    L, R = product.left, product.right
    size = min(rank + _OVERSAMPLING, *product.shape)
    generator = torch.Generator().manual_seed(_SKETCH_SEED)
    Q = torch.randn(R.shape[1], size, generator=generator, dtype=R.dtype)
    for _ in range(_POWER_ITERATIONS):
        Q, _T = torch.linalg.qr(L @ (R @ Q))
        Q, _T = torch.linalg.qr(R.T @ (L.T @ Q))
    Q, _T = torch.linalg.qr(L @ (R @ Q))
    U, S, Vt = torch.linalg.svd((Q.T @ L) @ R, full_matrices=False)
    return Q @ U, S, Vt


_METHODS: dict[str, Callable[[LowRank, int], Triplets]] = {
    "qr": _decompose_by_qr,
    "gram": _decompose_by_gram,
    "dense": _decompose_dense,
    "randomised": _decompose_randomized,
}

# A singular value below this fraction of the largest is the method's rounding: the direction does not exist.
_ZERO = {"qr": 1e-13, "gram": 1e-7, "dense": 1e-13, "randomised": 1e-6}


def recompress(product: LowRank, tolerance: float) -> LowRank:
    """The product at the smallest width, at least 1, that keeps all but a share `tolerance`, above 0, of norm(X)^2."""
    svd = compute_truncated_svd(product, min(product.width, *product.shape))
    energy = svd.S.double().square()
    total = float(energy.sum())
    width = int((total - energy.cumsum(0) > tolerance * total).sum()) + 1
    return LowRank(svd.U[:, :width] * svd.S[:width], svd.Vt[:width])

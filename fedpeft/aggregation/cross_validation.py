"""How strong a ridge regression has to be, from its sums alone: generalised cross-validation.

Of the strengths that are tried, the one of the least n RSS / (n - df)^2 (Golub, Heath and Wahba, Technometrics 21,
1979), with df the trace of the matrix that makes the fitted values of y. With M the centred moments of the features, b
their sums with the centred y, and w = (M + l)^-1 b for a penalty l,

    RSS = sum |y - mean|^2 - <w, b + l w>,    df = 1 + sum e / (e + l),   e the eigenvalues of M

so that no row is held out. Strengths that leave df above 3 n / 4 are left out: RSS is a difference of large numbers
there.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from scipy.linalg import lapack
from torch import Tensor

Array = np.ndarray

USUAL, ENOUGH = 1e-3, 12
"""The strength where there are at least so many times as many rows as features."""

STRENGTHS = USUAL * 10 ** (np.arange(15) / 4)
"""Of which one is chosen where there are fewer: 0.001 to 3.2, four to a decade. Of very few rows stronger ones would be
chosen, which say the most frequent class of everything (docs/decisions.md)."""

NOTHING = 1e-10
"""What is left of a feature where others tell all of it, in units of the largest moment."""


def choose_strength(moments: Tensor, sums: Tensor, squares: Tensor) -> float:
    """The strength, in units of the mean squared feature.

    Args:
        moments: of features and the constant 1, which is the last, (d + 1, d + 1), fp64.
        sums: of their products with y, (d + 1, classes).
        squares: sums of y^2, (classes,).
    """
    X, b, total = moments.numpy(), sums.numpy(), float(squares.sum())
    rows, unit = float(X[-1, -1]), float(X.diagonal()[:-1].mean())
    if rows >= ENOUGH * (len(X) - 1):
        return USUAL
    if not unit:
        return float(STRENGTHS[-1])
    rows = max(rows, 1.0)  # a coarse code may leave nothing of the constant
    centred = X[:-1, :-1] - np.outer(X[:-1, -1], X[-1, :-1]) / rows
    along = b[:-1] - np.outer(X[:-1, -1], b[-1]) / rows
    explained, freedom = _fit_penalties(centred, along, rows, STRENGTHS * unit)
    left = total - (b[-1] ** 2).sum() / rows - explained
    allowed = freedom <= 0.75 * rows
    scores = left[allowed] / (rows - freedom[allowed]) ** 2
    return float(STRENGTHS[allowed][scores.argmin()] if len(scores) else STRENGTHS[-1])


def _fit_penalties(M: Array, b: Array, rows: float, penalties: Array) -> tuple[Array, Array]:
    """<w, b + l w> and df of each penalty l."""
    each = penalties[:, None]
    if 2 * rows < len(M) or len(M) == 1:
        root = _compute_root(M)  # M = root root^T, so that its few eigenvalues are those of the small root^T root
        e, vectors = np.linalg.eigh(root.T @ root)
        kept = e > NOTHING * e.max(initial=0.0)
        e, along = e[kept], vectors[:, kept].T @ (root.T @ b)
        shrunk = (along**2).sum(1) / e / (e + each)
        return (shrunk * (1 + each / (e + each))).sum(1), 1 + (e / (e + each)).sum(1)
    diagonal, beside, b = _reduce_to_tridiagonal(M, b)
    e = np.maximum(scipy.linalg.eigvalsh_tridiagonal(diagonal, beside), 0.0)
    explained = []
    for penalty in penalties:
        bands = np.stack([np.append(0.0, beside), diagonal + penalty, np.append(beside, 0.0)])
        w = scipy.linalg.solve_banded((1, 1), bands, b)
        explained.append(float((w * (b + penalty * w)).sum()))
    return np.array(explained), 1 + (e / (e + each)).sum(1)


def _compute_root(M: Array) -> Array:
    """A thin root (d, r) of a positive semidefinite matrix of rank r, by Cholesky factors with pivots."""
    factor, pivots, rank, _ = lapack.dpstrf(M, lower=1, tol=NOTHING * M.diagonal().max())
    root = np.empty((len(M), rank))
    root[pivots - 1] = np.tril(factor[:, :rank])
    return root


def _reduce_to_tridiagonal(M: Array, b: Array) -> tuple[Array, Array, Array]:
    """Diagonal (d,) and the entries beside it (d - 1,) of Q^T M Q, and Q^T b; Q is orthogonal."""
    blocks = 64 * max(*M.shape, *b.shape)  # of LAPACK's work: with less it takes columns one by one
    reflectors, diagonal, beside, scales, _ = lapack.dsytrd(M, lower=1, lwork=blocks)
    below, _, _ = lapack.dormqr("L", "T", reflectors[1:, :-1], scales, b[1:], blocks)  # Q leaves the first row alone
    return diagonal, beside, np.concatenate([b[:1], below])

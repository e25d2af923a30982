"""Strength of a ridge regression from its sums alone, by generalized cross-validation.

The chosen strength has the least n RSS / (n - df)^2 (Golub, Heath and Wahba, Technometrics 21, 1979). Here df is the
trace of the matrix that maps y to its fitted values. M contains the centered moments of the features, b their sums with
the centered y, and w = (M + l)^-1 b for a penalty l:

    RSS = sum |y - mean|^2 - <w, b + l w>,    df = 1 + sum e / (e + l),   e the eigenvalues of M

No example is held out. Strengths with df above 3 n / 4 are skipped, since RSS is then a difference of large numbers.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from scipy.linalg import lapack
from torch import Tensor

Array = np.ndarray

USUAL, ENOUGH = 1e-3, 12
"""The strength for many examples, and how many times the number of features counts as many."""

STRENGTHS = USUAL * 10 ** (np.arange(15) / 4)
"""Strengths to choose from for fewer examples: 0.001 to 3.2, four to a decade.

For very few examples, stronger ones would be chosen, which predict the most frequent class (docs/decisions.md).
"""

NOTHING = 1e-10
"""What rounding leaves of a feature that others determine, in units of the largest moment."""


def choose_strength(moments: Tensor, sums: Tensor, squares: Tensor) -> float:
    """Return the strength in units of the mean squared feature.

    Args:
        moments: second moments of the features and of the constant 1, which is last, (d + 1, d + 1), fp64.
        sums: sums of their products with y, (d + 1, classes).
        squares: sums of y^2, (classes,).
    """
    moments_array, products, total = moments.numpy(), sums.numpy(), float(squares.sum())
    rows, unit = float(moments_array[-1, -1]), float(moments_array.diagonal()[:-1].mean())
    if rows >= ENOUGH * (len(moments_array) - 1):
        return USUAL
    if not unit:
        return float(STRENGTHS[-1])
    rows = max(rows, 1.0)  # a coarse codec may round the constant to 0
    centered = moments_array[:-1, :-1] - np.outer(moments_array[:-1, -1], moments_array[-1, :-1]) / rows
    along = products[:-1] - np.outer(moments_array[:-1, -1], products[-1]) / rows
    explained, freedom = _fit_penalties(centered, along, rows, STRENGTHS * unit)
    left = total - (products[-1] ** 2).sum() / rows - explained
    allowed = freedom <= 0.75 * rows
    scores = left[allowed] / (rows - freedom[allowed]) ** 2
    return float(STRENGTHS[allowed][scores.argmin()] if len(scores) else STRENGTHS[-1])


def _fit_penalties(centered: Array, products: Array, rows: float, penalties: Array) -> tuple[Array, Array]:
    """Return <w, b + l w> and df for each penalty l."""
    each = penalties[:, None]
    if 2 * rows < len(centered) or len(centered) == 1:
        root = _compute_root(centered)  # M = root root^T has the few eigenvalues of the small root^T root
        e, vectors = np.linalg.eigh(root.T @ root)
        kept = e > NOTHING * e.max(initial=0.0)
        e, along = e[kept], vectors[:, kept].T @ (root.T @ products)
        shrunk = (along**2).sum(1) / e / (e + each)
        return (shrunk * (1 + each / (e + each))).sum(1), 1 + (e / (e + each)).sum(1)
    diagonal, beside, products = _reduce_to_tridiagonal(centered, products)
    e = np.maximum(scipy.linalg.eigvalsh_tridiagonal(diagonal, beside), 0.0)
    explained = []
    for penalty in penalties:
        bands = np.stack([np.append(0.0, beside), diagonal + penalty, np.append(beside, 0.0)])
        w = scipy.linalg.solve_banded((1, 1), bands, products)
        explained.append(float((w * (products + penalty * w)).sum()))
    return np.array(explained), 1 + (e / (e + each)).sum(1)


def _compute_root(centered: Array) -> Array:
    """Compute a thin root (d, r) of a positive semidefinite matrix of rank r, by Cholesky factors with pivots."""
    factor, pivots, rank, _ = lapack.dpstrf(centered, lower=1, tol=NOTHING * centered.diagonal().max())
    root = np.empty((len(centered), rank))
    root[pivots - 1] = np.tril(factor[:, :rank])
    return root


def _reduce_to_tridiagonal(centered: Array, products: Array) -> tuple[Array, Array, Array]:
    """Return the diagonal (d,) of Q^T M Q, the entries beside it (d - 1,), and Q^T b, for an orthogonal Q."""
    blocks = 64 * max(*centered.shape, *products.shape)  # LAPACK's work space: with less it takes columns one by one
    reflectors, diagonal, beside, scales, _ = lapack.dsytrd(centered, lower=1, lwork=blocks)
    # Q leaves the first row alone.
    below, _, _ = lapack.dormqr("L", "T", reflectors[1:, :-1], scales, products[1:], blocks)
    return diagonal, beside, np.concatenate([products[:1], below])

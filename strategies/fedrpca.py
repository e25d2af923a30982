"""FedRPCA: common changes are averaged, special ones amplified (Jhunjhunwala et al., arXiv 2506.01194).

    M = [vec(delta_1) .. vec(delta_K)] = L + S,   minimizing |L|_* + lambda |S|_1,   lambda = 1 / sqrt(max(n, K))
    x <- x + sum_k p_k L_k + beta sum_k p_k S_k

The low-rank L holds what many clients' changes share, the sparse S what is special to each. In a plain mean the latter
shrinks by 1 / K. Each factor of each layer is a matrix M of its own, with one column of n entries for each client. The
decomposition is principal component pursuit (Candes et al., arXiv 0912.3599). It is computed by their alternating
directions method with their penalty mu = n K / (4 |M|_1). The penalty stays fixed. If it grows in each step, as in
faster variants, the iteration ends far from the minimum. S is M - L, so with beta = 1 the rule is FedIT up to rounding.

Without `beta`, each M has its own: beta = |M p| / |S p|, the inverse of the share that the special part has in the mean
update, at least 1 and at most `largest`. The paper uses the inverse of such a share; its exact norm is not known here.

Only the abstract and notes on the paper were available: the split, the two means and an adaptive beta are the paper's,
the rest is derived. Deviations: weights p_k (the paper's are equal: weighting=uniform). With mixed ranks a client's
change of the ranks that it lacks is 0, and B carries s_k / s. Tensors outside of the factors, such as the head, receive
their weighted mean. The rule is not exact, because it averages factors.

Use it if clients differ in what they learn and a plain mean drowns what is special to few.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregation.factors import get_lora_form
from fedpeft.aggregation.strategy import GatherStrategy
from fedpeft.aggregation.update import Cohort, Gathered, Update, pad_ranks
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, LoraPair, State

TOLERANCE = 1e-5
"""The decomposition ends when |M - L - S| is at most this share of |M| (Frobenius norms)."""


@dataclass(frozen=True)
class FedRPCA(GatherStrategy):
    """The mean of the clients' common changes, and an amplified mean of their special ones."""

    beta: float | None = setting(None, "factor of the sparse part; none: the inverse of its share in the mean", low=0)
    largest: float = setting(5.0, "the largest factor that an adaptive beta may reach", low=1)
    steps: int = setting(200, "most steps of the decomposition", low=1)

    mixed_ranks: ClassVar[bool] = True
    arrives_whole: ClassVar[bool] = False
    preserves = ("all ranks",)

    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """Return both factors, each after its own step."""
        s = get_lora_form(layout).scale
        return Gathered(
            self._next(state[pair.A], [_delta(u, pair.A, state) for u in cohort.updates], cohort.shares),
            self._next(
                state[pair.B], [_delta(u, pair.B, state) * (u.scale / s) for u in cohort.updates], cohort.shares
            ),
        )

    def _next(self, before: Tensor, deltas: list[Tensor], shares: tuple[float, ...]) -> Tensor:
        """Return `before` after the step of one factor, in its dtype."""
        matrix = torch.stack([delta.double().flatten() for delta in deltas], dim=1)
        p = torch.tensor(shares, dtype=torch.float64)
        common = decompose(matrix, self.steps) @ p
        mean = matrix @ p
        special = mean - common
        beta = self.beta
        if beta is None:
            size = float(special.norm())
            beta = min(self.largest, max(1.0, float(mean.norm()) / size)) if size else 1.0
        step = mean + (beta - 1) * special
        return before + step.reshape(before.shape).to(before.dtype)


def _delta(update: Update, name: str, state: State) -> Tensor:
    """Return a client's change of a factor in the global shape; 0 in what it does not train or hold."""
    return pad_ranks(update.delta[name], state[name]) if name in update.delta else torch.zeros_like(state[name])


def decompose(matrix: Tensor, steps: int) -> Tensor:
    """Return the low-rank part L (n, K) of M (n, K), fp64; the sparse part is M - L.

    Args:
        matrix: M, finite, fp64.
        steps: largest number of steps.
    """
    size = float(matrix.norm())
    if size == 0:
        return matrix
    sparsity = 1 / math.sqrt(max(matrix.shape))
    mu = matrix.numel() / (4 * float(matrix.abs().sum()))
    sparse, multiplier = torch.zeros_like(matrix), torch.zeros_like(matrix)
    low_rank = matrix
    for _ in range(steps):
        low_rank = shrink_singular_values(matrix - sparse + multiplier / mu, 1 / mu)
        sparse = shrink(matrix - low_rank + multiplier / mu, sparsity / mu)
        rest = matrix - low_rank - sparse
        multiplier = multiplier + mu * rest
        if float(rest.norm()) <= TOLERANCE * size:
            break
    return low_rank


def shrink(matrix: Tensor, by: float) -> Tensor:
    """Return the matrix with each entry moved towards 0 by at most `by`."""
    shrunk: Tensor = matrix.sign() * (matrix.abs() - by).clamp_min(0)
    return shrunk


def shrink_singular_values(matrix: Tensor, by: float) -> Tensor:
    """Return X (n, K) with each singular value reduced by `by`, which is above 0, but not below 0.

    The right singular vectors are the eigenvectors of X^T X (K, K). Rounding turns small singular values into 0.
    """
    squares, right = torch.linalg.eigh(matrix.T @ matrix)
    sizes = squares.clamp_min(0).sqrt()
    kept = (sizes - by).clamp_min(0) / sizes.clamp_min(by)
    shrunk: Tensor = matrix @ ((right * kept) @ right.T)
    return shrunk


part = FedRPCA

"""FLoRA-NA: sums of the clients' factors whose product is close to the exact mean (Nguyen et al., arXiv 2509.26399).

    A = sum_k a_k A_k,   B = sum_k b_k (s_k / s) B_k,   where a and b (K,) minimize |dW* - s B A|_F^2

The factors keep their shapes, so the rule sends the bytes of FedIT. It costs the server inner products of the factors.
With the Gram matrices of all columns of B and all rows of A, a step needs K^2 r^2 operations. No matrix has the layer's
size.

The objective is quadratic in a for fixed b, and in b for fixed a. The server starts at a = b = p, which is FedIT, and
solves for b and for a in turn, `passes` times. Each solution minimizes

    |dW* - s B A|_F^2 + ridge * mean eigenvalue * |weights - weights before|^2

so that no step raises the error, and the result is never further from dW* than FedIT's. The objective is not convex in
both together: the result is a local minimum.

Deviations: the abstract and the introduction were available, not the algorithm. The paper estimates A and B on the
server as well; alternating least squares and the ridge are ours. Weights are shared by all columns of a client's B and
all rows of its A. Mixed ranks and alphas are padded and rescaled as in `fedex_lora`. Tensors outside of the factors
receive their weighted mean.

Use it if aggregation should be close to exact and clients must send no more than with FedIT.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.aggregation.factors import get_lora_form
from fedpeft.aggregation.missing_ranks import MixedRankStrategy
from fedpeft.aggregation.update import Cohort, Gathered, compute_weighted_sum, pad_ranks
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, LoraPair, State
from fedpeft.peft.low_rank import compute_gram_matrix


@dataclass(frozen=True)
class FLoRANA(MixedRankStrategy):
    """Weighted sums of A and of B whose product is nearest to dW*."""

    preserves = ("all ranks",)

    passes: int = setting(10, "how often the server solves for the weights of B and then of A", low=1)
    ridge: float = setting(
        1e-3, "pull of each solution to the weights before, relative to the mean eigenvalue of the problem", low=0
    )

    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """Return the two weighted sums of the factors."""
        cohort, s = self.complete_cohort(pair, state, layout, cohort), get_lora_form(layout).scale
        downs = [pad_ranks(u.get_trained(pair.A), state[pair.A]) for u in cohort.updates]
        ups = [pad_ranks(u.get_trained(pair.B) * (u.scale / s), state[pair.B]) for u in cohort.updates]
        clients, rank = len(downs), len(state[pair.A])
        columns = compute_gram_matrix(*(factor.T for factor in ups)).reshape(clients, rank, clients, rank)
        rows = compute_gram_matrix(*downs).reshape(clients, rank, clients, rank)
        p = torch.tensor(cohort.shares, dtype=torch.float64)
        a, b = p, p
        for _ in range(self.passes):
            b = self._solve(columns, rows, p, a, b)
            a = self._solve(rows, columns, p, b, a)
        return Gathered(compute_weighted_sum(downs, a.tolist()), compute_weighted_sum(ups, b.tolist()))

    def _solve(self, moving: Tensor, fixed: Tensor, p: Tensor, weights: Tensor, before: Tensor) -> Tensor:
        """Return the best weights (K,) of one factor for the given `weights` (K,) of the other.

        Args:
            moving: inner products of the columns (or rows) of all clients' factors to weigh, (K, r, K, r).
            fixed: the same of the other factor.
            p: shares of the clients in dW*, (K,).
            weights: of the other factor.
            before: of this factor, near which the solution stays.
        """
        half = torch.einsum("m,minj->inj", weights, fixed)
        gram = torch.einsum("kilj,inj,n->kl", moving, half, weights)
        goal = torch.einsum("kinj,inj,n->k", moving, half, p)
        pull = self.ridge * gram.diagonal().mean() * torch.eye(len(p), dtype=gram.dtype)
        step: Tensor = torch.linalg.pinv(gram + pull, rtol=1e-10, hermitian=True) @ (goal - gram @ before)
        return before + step


part = FLoRANA

"""HetLoRA: zero-padding, norms as weights, truncation (Cho et al., arXiv 2401.06432).

    w_k = norm(s_k B_k A_k)_F / sum_j norm(s_j B_j A_j)_F
    A <- sum_k w_k pad(A_k),   B <- sum_k w_k pad((s_k / s) B_k);   client k gets the first r_k ranks

The norm is sqrt(tr(B^T B A A^T)), without the product. Not exact: a mean of factors. Self-pruning of ranks: a client
whose ranks beyond decay * r shrank in training (norm(B tail) norm(A tail), summed over layers) keeps decay * r.

Deviations: the norm contains s_k, since alphas may differ (equal alphas and ranks give the same weights). Weights by
number of examples are used for the head, but not for the factors, as in the paper. The paper's penalty that drives the
tail towards 0 is a local loss term and not part of this rule.

With mixed ranks, a round without any training changes the global weight: dW* counts the ranks that a client was not
sent as 0. `missing_ranks=keep` counts them as unchanged (`fedpeft.aggregation.missing_ranks`).

Use it if clients have different ranks and should give up ranks that fade.
"""

import math
from dataclasses import dataclass

import torch

from fedpeft.aggregation.factors import compute_mean_factors, compute_product
from fedpeft.aggregation.missing_ranks import MixedRankStrategy
from fedpeft.aggregation.update import Cohort, Gathered, Update
from fedpeft.parts import setting
from fedpeft.peft.adapter import AdapterShape, Layout, LoraPair, State


@dataclass(frozen=True)
class HetLoRA(MixedRankStrategy):
    """The mean weighted by the norms of the products; clients give up ranks that fade."""

    decay: float = setting(
        1.0, "share of the ranks kept when the tail has shrunk; 1: no pruning (paper: 0.99)", above=0, high=1
    )

    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """Return the norm-weighted means of the padded factors."""
        cohort = self.complete_cohort(pair, state, layout, cohort)
        norms = [compute_product(pair, u).norm() for u in cohort.updates]
        total = sum(norms)
        shares = tuple(n / total for n in norms) if total > 0 else cohort.shares
        return Gathered(*compute_mean_factors(pair, state, layout, cohort.replace_shares(shares)))

    def choose_next_form(self, update: Update, layout: Layout) -> AdapterShape | None:
        """Return the form without the tail, at the same scale, if training has shrunk the tail."""
        form = update.form
        if form is None:
            return None
        kept = max(1, math.floor(form.rank * self.decay))
        after = sum(
            _compute_tail_norm(pair, {n: update.get_trained(n) for n in (pair.A, pair.B)}, kept)
            for pair in layout.pairs
        )
        before = sum(_compute_tail_norm(pair, update.received, kept) for pair in layout.pairs)
        return layout.get_form(kept, form) if after < before else form


def _compute_tail_norm(pair: LoraPair, state: State, kept: int) -> float:
    down, up = state[pair.A][kept:], state[pair.B][:, kept:]
    return float(torch.linalg.norm(down) * torch.linalg.norm(up))


part = HetLoRA

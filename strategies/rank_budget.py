"""A common budget of ranks: all layers keep the best of their singular values. Own rule.

    dW*_l = U_l S_l V_l^T (flexlora's, rank R);   keep the triplets with the largest worth per number, until their
    numbers reach share * sum_l R (m_l + n_l);   the others have B = 0 and A = 0

A triplet of a layer (m, n) costs m + n numbers. With importance=energy its worth is S_li^2. Sorting by
S_li^2 / (m_l + n_l) and cutting is reverse water-filling. It loses the least of sum_l norm(dW*_l)_F^2 for this budget,
if the budget falls between two ranks. With importance=sensitivity the worth is abs(S_li u_li^T D_l v_li), where D_l is
the round's change of the layer's weight. This is AdaLoRA's weight times gradient (Zhang et al., arXiv 2303.10512) of a
triplet, as the server sees it, without moving averages.

A cut rank is zero in both factors, has no gradient, and stays zero on clients. An entropy coder sends it for almost
nothing (--codec "cast | pack | zstd", which is lossless; or rans). Ranks still move between layers, because the exact
mean of a cohort has more ranks than any client, up to R for each layer, and each round makes a new cut. The first
`warmup` rounds keep all ranks.

Use it if layers should share a budget of ranks, with a codec that compresses zeros.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregation.factors import compute_best_factors, compute_effective_weight, compute_target, get_lora_form
from fedpeft.aggregation.missing_ranks import MixedRankStrategy
from fedpeft.aggregation.update import Cohort, Gathered
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, LoraPair, State
from fedpeft.peft.low_rank import METHODS, LowRank, stack


@dataclass(frozen=True)
class RankBudget(MixedRankStrategy):
    """The truncated SVD of dW*, with a common budget of ranks for all layers."""

    share: float = setting(0.5, "share of the numbers of all factors that may differ from 0", above=0, high=1)
    importance: str = setting("energy", "measure of a rank's importance", choices=("energy", "sensitivity"))
    warmup: int = setting(1, "rounds before the first cut", low=0)
    svd: str = setting("auto", "method of the SVD; auto: the cheapest exact one", choices=METHODS)

    arrives_whole: ClassVar[bool] = False
    new_factors: ClassVar[bool] = True

    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """Return the best factors of dW*: B = U S / s, A = V^T."""
        return compute_best_factors(
            pair, compute_target(pair, self.complete_cohort(pair, state, layout, cohort)), state, layout, self.svd
        )

    def finish(self, before: State, after: State, layout: Layout, round_number: int) -> State:
        """Set the ranks to 0 that do not fit into the budget."""
        if round_number <= self.warmup or not layout.pairs:
            return after
        pairs = layout.pairs
        costs = torch.tensor([pair.in_features + pair.out_features for pair in pairs]).double()
        worth = torch.stack([self._compute_worth(pair, before, after, layout) for pair in pairs])
        kept = allocate_ranks(worth, costs, self.share)
        cut = dict(after)
        for pair, counts in zip(pairs, kept.to(after[pairs[0].A].dtype), strict=True):
            cut[pair.A], cut[pair.B] = after[pair.A] * counts[:, None], after[pair.B] * counts
        return cut

    def _compute_worth(self, pair: LoraPair, before: State, after: State, layout: Layout) -> Tensor:
        """Compute the worth of each rank of a layer, (R,), fp64."""
        down, up = after[pair.A].double(), after[pair.B].double() * get_lora_form(layout).scale
        if self.importance == "energy":
            return up.square().sum(0)
        form = get_lora_form(layout)
        change = stack([LowRank(up, down), convert_to_fp64(compute_effective_weight(pair, before, form).scale(-1.0))])
        return torch.einsum("or,oq,qi,ri->r", up, change.left, change.right, down).abs()


def convert_to_fp64(product: LowRank) -> LowRank:
    """Convert the factors of a product to fp64."""
    return LowRank(product.left.double(), product.right.double())


def allocate_ranks(worth: Tensor, costs: Tensor, share: float) -> Tensor:
    """Choose the ranks to keep: those with the largest worth per number, above 0, that fit into the budget.

    Args:
        worth: worth of each rank of each layer, (L, R), at least 0.
        costs: numbers of a rank of each layer, (L,).
        share: share of the numbers of all ranks that may be kept, in (0, 1].

    Returns:
        (L, R), bool. Among equals, the earlier layer and the earlier rank go first.
    """
    layers, ranks = worth.shape
    order = (worth / costs[:, None]).flatten().argsort(descending=True, stable=True)
    spent = costs.repeat_interleave(ranks)[order].cumsum(0)
    fits = (spent <= share * costs.sum() * ranks * (1 + 1e-12)) & (worth.flatten()[order] > 0)
    kept = torch.zeros(layers * ranks, dtype=torch.bool)
    kept[order[fits]] = True
    return kept.view(layers, ranks)


part = RankBudget

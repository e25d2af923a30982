"""RBLA: row j of A and column j of B are averaged over the clients that own rank j (Chen et al., arXiv 2408.08699).

    a_j <- sum_{k: r_k >= j} p_k a_kj / sum_{k: r_k >= j} p_k,   b_j <- the same of (s_k / s) b_kj

A client of rank r_k holds the leading r_k ranks of the global factors. Zero-padding, as in FedIT for mixed ranks and in
HetLoRA, shrinks the ranks that few clients own; here only a rank's owners count. Without owners in the cohort a rank
stays as it is. With equal ranks the rule is FedIT. It is not exact, because it averages factors. `raflora` averages
products over the owners, and `fed_plora` lets a client own any ranks.

Only the abstract and the introduction were available. Deviations: the scale s_k / s makes clients of different alphas
agree, weights are p_k, and the paper's server stores one adapter at the largest rank, as this one does.

Use it if clients have different ranks and few of them hold the high ones.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedpeft.aggregation.factors import get_lora_form, place_ranks
from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.aggregation.update import Fold, Update
from fedpeft.peft.adapter import Layout, State


@dataclass(frozen=True)
class RBLA(LinearStrategy):
    """The mean of each rank's factors over the clients that own the rank."""

    mixed_ranks: ClassVar[bool] = True
    preserves = ("all ranks",)

    def contribution(self, update: Update, state: State, layout: Layout) -> State:
        """Return the delta in the unit of the global scale, with zeros in the ranks that the client lacks."""
        unit = update.scale / get_lora_form(layout).scale
        delta = {n: d * unit if layout.by_name[n].role == "lora_B" else d for n, d in update.delta.items()}
        return place_ranks(delta, layout, ())

    def fold(self, total: Fold, update: Update, state: State, layout: Layout) -> None:
        """Add the contribution, and which of its entries the client owns."""
        owned = place_ranks({name: torch.ones_like(d) for name, d in update.delta.items()}, layout, ())
        total.add_owned(self.contribution(update, state, layout), owned, update.weight)

    def pseudo_gradient(self, total: Fold, layout: Layout) -> State:
        """Return the sums over the owners' weights."""
        return total.compute_owner_mean()


part = RBLA

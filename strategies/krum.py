"""Krum and multi-Krum (Blanchard et al., NeurIPS 2017, arXiv 1703.02757), on effective weights.

    score(i) = sum of norm(D_i - D_j)^2 over the K - f - 2 nearest j;   the m clients of least score are averaged

Distances run over all layers at once: D for LoRA layers, deltas elsewhere. The chosen ones count equally.

Deviations: distances between changes of the effective weight, where the paper has gradients. The text at arXiv scores
anew after each choice, and leaves open whether its guarantee holds for the m least scores of one round of scoring.
The guarantee needs K >= 2 f + 3; in a smaller cohort f is the largest that fits, and below 3 clients all are averaged.

Use it if a minority of clients may send hostile updates, and honest updates may be dropped with theirs.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.aggregation.robust import ReweighingStrategy
from fedpeft.parts import setting


@dataclass(frozen=True)
class Krum(ReweighingStrategy):
    """The mean of the `selected` clients with the least distances to their nearest clients."""

    attackers: float = setting(0.2, "f / K: the share of clients that may be hostile", low=0, below=0.5)
    selected: int = setting(1, "m: how many clients are averaged; 1 is Krum, more is multi-Krum", low=1)

    def coefficients(self, shares: Tensor, geometry: Tensor) -> Tensor:
        """Return 1 / m for the chosen clients, 0 for the others."""
        clients = len(shares)
        if clients < 3:
            return torch.full_like(shares, 1 / clients)
        attackers = min(math.ceil(self.attackers * clients), (clients - 3) // 2)
        norms = geometry.diagonal()
        distances = (norms[:, None] + norms[None, :] - 2 * geometry).fill_diagonal_(float("inf"))
        scores = distances.sort(dim=1).values[:, : clients - attackers - 2].sum(dim=1)
        # Two clients that are each other's nearest have equal scores up to rounding; the first one must always win.
        # Rounding is relative to each score: relative to the largest, maybe an attacker's, all others would be equal.
        coarse = scores.clamp(min=torch.finfo(scores.dtype).tiny).log().round(decimals=9)
        chosen = coarse.argsort(stable=True)[: self.selected]
        return torch.zeros_like(shares).index_fill_(0, chosen, 1 / len(chosen))


part = Krum

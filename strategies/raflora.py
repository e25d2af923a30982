"""raFLoRA: each slice of ranks is averaged over the clients that own it (Wu et al., arXiv 2602.13486).

    dW = sum_j sum_{k: r_k >= j} (p_k / sum_{l: r_l >= j} p_l) s_k B_k[:, j] A_k[j, :],   then the SVD of FlexLoRA

In dW*, the weight of clients that cannot hold a rank dilutes it. Over the rounds, the energy collapses into the
smallest rank of all. With equal ranks the rule is FlexLoRA. It is not exact, on purpose.

Deviation: none known. The paper uses partitions between the distinct ranks of the cohort. All ranks of a partition have
the same owners, so weighting each rank separately gives the same sum.

Use it if clients have different ranks and few of them hold the high ones.
"""

from dataclasses import dataclass

import torch

from fedpeft.aggregation.factors import compute_product
from fedpeft.aggregation.update import Cohort, Gathered
from fedpeft.errors import ConfigError
from fedpeft.peft.adapter import Layout, LoraPair, State
from fedpeft.peft.low_rank import LowRank, stack

from .flexlora import FlexLoRA


@dataclass(frozen=True)
class RaFLoRA(FlexLoRA):
    """FlexLoRA on a sum in which every rank has the weights of its owners."""

    preserves = ()

    def __post_init__(self) -> None:
        """Refuse the setting `missing_ranks`.

        Raises:
            ConfigError: it is set.
        """
        if self.missing_ranks != "zero":
            raise ConfigError(
                "FP1495 raflora counts only a rank's owners, so it has no missing_ranks; leave it out, or use flexlora"
            )

    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """Return the best factors of the owners' mean."""
        products = [compute_product(pair, u) for u in cohort.updates]
        owned = torch.zeros(max(p.width for p in products), dtype=torch.float64)
        for share, p in zip(cohort.shares, products, strict=True):
            owned[: p.width] += share
        weighted = [
            LowRank(p.left * (share / owned[: p.width]).to(p.left.dtype), p.right)
            for share, p in zip(cohort.shares, products, strict=True)
        ]
        return self.compute_best(pair, stack(weighted), state, layout)


part = RaFLoRA

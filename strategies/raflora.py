"""raFLoRA: each slice of ranks is averaged over the clients that own it (Wu et al., arXiv 2602.13486).

    dW = sum_j sum_{k: r_k >= j} (p_k / sum_{l: r_l >= j} p_l) s_k B_k[:, j] A_k[j, :],   then the SVD of FlexLoRA

In dW* itself a rank that few clients own is diluted by the weight of all those that can't hold it; over the rounds
the energy collapses into the smallest rank of all. With equal ranks the rule is FlexLoRA. Not exact, on purpose.

Deviation: none known. The paper speaks of partitions between the distinct ranks of the cohort; ranks between two
neighbours have the same owners, so weighting each rank by itself is the same sum.

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

    def __post_init__(self) -> None:
        if self.missing_ranks != "zero":
            raise ConfigError(
                "FP1495 raflora counts only a rank's owners, so missing_ranks can't be set; flexlora has it"
            )

    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """The best factors of the owners' mean."""
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

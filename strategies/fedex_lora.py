"""FedEx-LoRA: averaged factors, whose error goes into the base (Singhal et al., arXiv 2410.09432).

    A-bar = sum_k p_k A_k,   B-bar = sum_k p_k (s_k / s) B_k,   W0 <- W0 + sum_k p_k s_k B_k A_k - s B-bar A-bar

The residual has rank at most (K - 1) r when ranks and scales are equal. Deviation: mixed ranks by zero-padding and
mixed alphas in the unit of the global one; the paper has one of each. The sum of factors and residual is dW* anyway.

With mixed ranks, a round without any training changes the global weight: dW* counts the ranks that a client was not
sent as 0. `missing_ranks=keep` counts them as unchanged (`fedpeft.aggregation.missing_ranks`).

Use it if aggregation must be exact and the downlink can carry the residual.
"""

from dataclasses import dataclass

from fedpeft.aggregation.factors import compute_mean_factors, compute_target, get_lora_form
from fedpeft.aggregation.missing_ranks import MixedRankStrategy
from fedpeft.aggregation.update import Cohort, Gathered
from fedpeft.peft.adapter import Layout, LoraPair, State
from fedpeft.peft.low_rank import LowRank, stack


@dataclass(frozen=True)
class FedExLoRA(MixedRankStrategy):
    """The mean of the factors, with the exact difference as residual."""

    @property
    def fills_base(self) -> bool:
        """True."""
        return True

    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """Return A-bar, B-bar and dW* - s B-bar A-bar."""
        cohort = self.complete_cohort(pair, state, layout, cohort)
        down, up = compute_mean_factors(pair, state, layout, cohort)
        averaged = LowRank(up * -get_lora_form(layout).scale, down)
        return Gathered(down, up, stack([compute_target(pair, cohort), averaged]))


part = FedExLoRA

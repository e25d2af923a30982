"""FlexLoRA: the best rank-r factors of the exact mean, for clients of any rank (Bai et al., arXiv 2402.11505).

    dW* = sum_k p_k s_k B_k A_k = U S V^T;   global: B = U_R S_R / s, A = V_R^T;   client k: its first r_k ranks,
    B = U_r S_r / s_k, A = V_r^T

Deviation: dW* is never formed. Its SVD comes from the stacked factors, by the cheapest method
(`fedpeft.peft.low_rank`), with the same result. `remainder=keep` puts the part beyond the global rank R into the base,
where the paper drops it.

With `energy` below 1 it is FLoRIST (Ramesh, Dass, arXiv 2506.09199). Its SVD of the small core between the SVDs of the
two stacks has the same singular values. Each layer keeps the fewest ranks p with

    sum_{i <= p} S_i^2 >= energy * norm(dW*)_F^2

at most R here, while FLoRIST has no bound. Layers keep their shapes. A rank beyond p has B = 0, which an entropy coder
sends for almost nothing, and keeps its row of A, so that clients can train it again.

With mixed ranks, a round without any training changes the global weight: dW* counts the ranks that a client was not
sent as 0. `missing_ranks=keep` counts them as unchanged (`fedpeft.aggregation.missing_ranks`).

Use it first if clients have different ranks.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregation.factors import compute_best_factors, compute_target
from fedpeft.aggregation.missing_ranks import MixedRankStrategy
from fedpeft.aggregation.update import Cohort, Gathered
from fedpeft.parts import setting
from fedpeft.peft.adapter import JointMeaning, Layout, LoraPair, State
from fedpeft.peft.low_rank import METHODS, LowRank


@dataclass(frozen=True)
class FlexLoRA(MixedRankStrategy):
    """The truncated SVD of dW*."""

    svd: str = setting("auto", "method of the SVD; auto: the cheapest exact one", choices=METHODS)
    remainder: str = setting(
        "drop", "the part beyond the global rank: drop (paper) or keep (in the base)", choices=("drop", "keep")
    )
    energy: float = setting(
        1.0, "share of the squared norm that a layer's ranks must contain; below 1: FLoRIST", above=0, high=1
    )

    new_factors: ClassVar[bool] = True
    preserves: ClassVar[tuple[JointMeaning, ...]] = ("product", "singular values")

    @property
    def fills_base(self) -> bool:
        """Whether the remainder is kept."""
        return self.remainder == "keep"

    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """Return the best factors of dW*."""
        return self.compute_best(
            pair, compute_target(pair, self.complete_cohort(pair, state, layout, cohort)), state, layout
        )

    def compute_best(self, pair: LoraPair, matrix: LowRank, state: State, layout: Layout) -> Gathered:
        """Return the best factors of `matrix` with this rule's settings."""
        return compute_best_factors(pair, matrix, state, layout, self.svd, self.fills_base, self.energy)


part = FlexLoRA

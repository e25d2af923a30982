"""LoRA-FAIR: the mean of A stays, the mean of B is corrected towards the exact product (Bian et al., arXiv 2411.14961).

    B <- B-bar + dB,   dB = (dW* / s - B-bar A-bar) A-bar^T (A-bar A-bar^T + lambda I)^-1,
    lambda = ridge * tr(A-bar A-bar^T) / r

Deviation: the paper finds dB by gradient steps on a cosine similarity plus a penalty. This is the closed form of

    min norm(dW* / s - (B-bar + dB) A-bar)^2 + lambda norm(dB)^2

Here lambda scales with A, so rescaling all clients together changes nothing. The result is nearer to dW* than the
means, but not exact. Mixed ranks and alphas are padded, as in FedEx-LoRA.

With mixed ranks, a round without any training changes the global weight: dW* counts the ranks that a client was not
sent as 0. `missing_ranks=keep` counts them as unchanged (`fedpeft.aggregation.missing_ranks`).

Use it if the mean should come nearer to the exact one without more bytes, also for different ranks.
"""

from dataclasses import dataclass

import torch

from fedpeft.aggregation.factors import compute_mean_factors, compute_target, get_lora_form
from fedpeft.aggregation.missing_ranks import MixedRankStrategy
from fedpeft.aggregation.update import Cohort, Gathered
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, LoraPair, State


@dataclass(frozen=True)
class LoRAFair(MixedRankStrategy):
    """The mean of A, and the mean of B with a ridge correction."""

    preserves = ("all ranks",)

    ridge: float = setting(0.01, "lambda as a share of the mean eigenvalue of A A^T (paper: penalty 0.01)", above=0)

    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """Return A-bar and B-bar + dB."""
        cohort = self.complete_cohort(pair, state, layout, cohort)
        mean_down, mean_up = compute_mean_factors(pair, state, layout, cohort)
        down, up = mean_down.double(), mean_up.double()
        exact = compute_target(pair, cohort)
        # dW* A^T from the factors
        projected = exact.left.double() @ (exact.right.double() @ down.T) / get_lora_form(layout).scale
        gram = down @ down.T
        regularized = gram + self.ridge * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype)
        # A-bar may be 0; then the pseudo-inverse, and so dB, is 0, too.
        correction = (projected - up @ gram) @ torch.linalg.pinv(regularized, hermitian=True)
        return Gathered(mean_down, (up + correction).to(mean_up.dtype))


part = LoRAFair

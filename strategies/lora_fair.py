"""LoRA-FAIR: the mean of A stays, the mean of B is corrected towards the exact product (Bian et al., arXiv 2411.14961).

    B <- B-bar + dB,   dB = (dW* / s - B-bar A-bar) A-bar^T (A-bar A-bar^T + lambda I)^-1,
    lambda = ridge * tr(A-bar A-bar^T) / r

Deviation: the paper finds dB by gradient steps on a cosine similarity plus a penalty; this is the closed form of
min norm(dW* / s - (B-bar + dB) A-bar)^2 + lambda norm(dB)^2, whose lambda scales with A, so that rescaling all
clients together changes nothing. Nearer to dW* than the means, not exact. Mixed ranks and alphas by padding, as in
FedEx-LoRA.

A round without any training changes the global weight where ranks are mixed, since dW* counts what a client was not
sent as 0 (`fedpeft.aggregation.missing_ranks`); `missing_ranks=keep` offers the other reading.

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
    """The mean of A, and the ridge-corrected mean of B."""

    ridge: float = setting(0.01, "lambda as a share of the mean eigenvalue of A A^T (paper: penalty 0.01)", above=0)

    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """A-bar and B-bar + dB."""
        cohort = self.complete_cohort(pair, state, layout, cohort)
        A_bar, B_bar = compute_mean_factors(pair, state, layout, cohort)
        A, B = A_bar.double(), B_bar.double()
        exact = compute_target(pair, cohort)
        # dW* A^T, from the factors
        projected = exact.left.double() @ (exact.right.double() @ A.T) / get_lora_form(layout).scale
        gram = A @ A.T
        regularised = gram + self.ridge * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype)
        # The pseudo-inverse, since A-bar may be 0, where dB is 0 too.
        dB = (projected - B @ gram) @ torch.linalg.pinv(regularised, hermitian=True)
        return Gathered(A_bar, (B + dB).to(B_bar.dtype))


part = LoRAFair

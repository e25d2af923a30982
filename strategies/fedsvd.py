"""FedSVD: FFA-LoRA whose A follows the learned directions (Lee et al., NeurIPS 2025, arXiv 2505.12805).

    B <- (1/s) sum_k p_k s_k B_k;   B A = U S V^T;   A <- V^T,   B <- U S

After a round of FFA-LoRA, B A is refactored. The product does not change, so the step is exact and costs no privacy.
The orthonormal rows of A bound the gradient of B. Ranks are sorted by singular value, so a client of lower rank
receives the best part of B A.

Deviation: if a singular value is 0 (always after round 0, when B = 0), A keeps its row. The paper's SVD would put an
arbitrary direction there.

Use it under noise or secure sums if `ffa_lora`, with its random A, learns too little.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregation.factors import compute_best_factors, compute_effective_weight, get_lora_form
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, State

from .ffa_lora import FFALoRA


@dataclass(frozen=True)
class FedSVD(FFALoRA):
    """FFA-LoRA with an orthonormal A that follows the learned directions."""

    every: int = setting(1, "rounds between two refactorings (paper: 1)", low=1)

    new_factors: ClassVar[bool] = True
    preserves = ("all ranks",)

    def finish(self, before: State, after: State, layout: Layout, round_number: int) -> State:
        """Refactor each layer's B A as U S and V^T."""
        if round_number % self.every:
            return after
        refactored = dict(after)
        for pair in layout.pairs:
            factors = compute_best_factors(
                pair, compute_effective_weight(pair, after, get_lora_form(layout)), after, layout, "qr"
            )
            refactored[pair.A], refactored[pair.B] = factors.A, factors.B
        return refactored


part = FedSVD

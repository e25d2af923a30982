"""RoLoRA: the two factors take turns, so that each round is exact (Chen et al., arXiv 2502.01755).

    odd rounds:   A frozen, B <- (1/s) sum_k p_k s_k B_k
    even rounds:  B frozen, A <- (1/s) sum_k p_k s_k A_k

It is FFA-LoRA in which both factors learn. Deviation: mixed ranks and alphas as in `ffa_lora`; the paper has one of
each. B must go first, because it starts at 0, and with B = 0 an A-round would have no gradient.

Use it if the mean must be exact and both factors should learn, also under noise or secure sums.
"""

from dataclasses import dataclass

from fedpeft.peft.adapter import Role

from .ffa_lora import FFALoRA


@dataclass(frozen=True)
class RoLoRA(FFALoRA):
    """FFA-LoRA with the trained factor alternating."""

    def get_trained_factor(self, round_number: int) -> Role:
        """Return B in odd rounds, A in even ones."""
        return "lora_B" if round_number % 2 == 1 else "lora_A"


part = RoLoRA

"""FLoRA: stacking the clients' factors is exact; the product goes into the base (Wang et al., arXiv 2409.05976).

    B = [B_1 .. B_K],  A = [p_1 s_1 A_1; ..; p_K s_K A_K],   W0 <- W0 + B A

and every round starts with fresh factors, A random and B = 0. The stack has rank sum_k r_k: that is what newcomers
and clients must be sent, and the reason why FLoRA's downlink is large.

Deviation: the fresh A is drawn from the run's seed, the round and the layer, by the rule of the LoRA paper's reference
code, uniform in +-1/sqrt(in); all clients get the same one (a client of rank r its first r rows), so that nothing but
the seed travels for it. It is no average of anybody's A.

Use it if aggregation must be exact and the downlink can carry the stacked factors of all clients.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregation.factors import compute_target
from fedpeft.aggregation.strategy import GatherStrategy
from fedpeft.aggregation.update import Cohort, Gathered
from fedpeft.peft.adapter import Layout, LoraPair, State
from fedpeft.seeds import create_torch_generator


@dataclass(frozen=True)
class FLoRA(GatherStrategy):
    """Everything learned moves to the base; the factors start anew."""

    mixed_ranks: ClassVar[bool] = True
    new_factors: ClassVar[bool] = True

    @property
    def fills_base(self) -> bool:
        """Always."""
        return True

    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """Fresh factors; dW* as the residual."""
        A = draw_factor(state[pair.A], cohort.seed, cohort.round, pair.module)
        return Gathered(A, torch.zeros_like(state[pair.B]), compute_target(pair, cohort))


def draw_factor(like: Tensor, seed: int, round_number: int, module: str) -> Tensor:
    """A new A of the shape (rank, in) of `like`, uniform in +-1/sqrt(in)."""
    generator = create_torch_generator(seed, f"flora {module}", round_number)
    bound = like.shape[1] ** -0.5
    return torch.empty_like(like).uniform_(-bound, bound, generator=generator)


part = FLoRA

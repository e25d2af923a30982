"""FLoRA: stacking the clients' factors is exact; the product goes into the base (Wang et al., arXiv 2409.05976).

    B = [B_1 .. B_K],  A = [p_1 s_1 A_1; ..; p_K s_K A_K],   W0 <- W0 + B A

and every round starts with fresh factors, A random and B = 0. The stack has rank sum_k r_k. All clients and newcomers
must receive it, so FLoRA's downlink is large.

Deviation: the fresh A is drawn from the run's seed, the round and the layer, uniform in +-1/sqrt(in), as in the LoRA
paper's reference code. All clients use the same A (a client of rank r its first r rows), so only the seed travels. It
is not an average of the clients' A.

Use it if aggregation must be exact and the downlink can carry the stacked factors of all clients.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregation.factors import compute_target
from fedpeft.aggregation.strategy import GatherStrategy
from fedpeft.aggregation.update import Cohort, Gathered
from fedpeft.machine.seeds import create_torch_generator
from fedpeft.peft.adapter import Layout, LoraPair, State


@dataclass(frozen=True)
class FLoRA(GatherStrategy):
    """Products that move to the base, and factors that start anew."""

    mixed_ranks: ClassVar[bool] = True
    new_factors: ClassVar[bool] = True

    @property
    def fills_base(self) -> bool:
        """True."""
        return True

    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """Return fresh factors, and dW* as the residual."""
        down = draw_factor(state[pair.A], cohort.seed, cohort.round, pair.module)
        return Gathered(down, torch.zeros_like(state[pair.B]), compute_target(pair, cohort))


def draw_factor(like: Tensor, seed: int, round_number: int, module: str) -> Tensor:
    """Draw a new A of the shape (rank, in) of `like`, uniform in +-1/sqrt(in)."""
    generator = create_torch_generator(seed, f"flora {module}", round_number)
    bound = like.shape[1] ** -0.5
    return torch.empty_like(like).uniform_(-bound, bound, generator=generator)


part = FLoRA

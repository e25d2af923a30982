"""Adam on the server (Reddi et al., arXiv 2003.00295, algorithm 2).

m <- beta1 m + (1 - beta1) d,   v <- beta2 v + (1 - beta2) d^2,   x <- x + eta m / (sqrt(v) + tau),   v starts at tau^2

corrected=True, if the server adds noise (user_dp): the noise's part of v is subtracted, as in DP-AdamBC (Tang,
Shpilevskiy, Lecuyer, arXiv 2312.14334), but v stays at least a share `floor` of it:

    w <- beta2 w + (1 - beta2) Phi,   x <- x + eta m / (sqrt(max(v - w, floor w)) + tau),   Phi the noise's variance
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedpeft.aggregation.server_optimizer import AdaptiveServerOptimizer, OptimizerState, ServerOptimizer
from fedpeft.parts import setting
from fedpeft.peft.adapter import State


@dataclass(frozen=True)
class Adam(AdaptiveServerOptimizer):
    """Coordinate-wise steps from running moments."""

    beta2: float = setting(0.99, "share of the last v that is kept", low=0, below=1)
    corrected: bool = setting(False, "subtract the noise that the server adds (user_dp) from v")
    floor: float = setting(0.1, "corrected: least of v, relative to the noise in it", above=0, high=100)

    def second_moment(self, v: Tensor, d: Tensor) -> Tensor:
        """Compute the next v."""
        return self.beta2 * v + (1 - self.beta2) * d.square()

    @property
    def needs_noise(self) -> bool:
        """Whether v is corrected."""
        return self.corrected

    def correct_for_noise(self, variance: float) -> ServerOptimizer:
        """Return the optimizer that subtracts noise of this variance from v, if v is corrected."""
        return _Corrected(self, variance) if self.corrected else self


@dataclass(frozen=True)
class _Corrected(ServerOptimizer):
    """Adam on directions with noise of a known variance in each entry."""

    adam: Adam
    variance: float

    def step(self, state: State, direction: State, memory: OptimizerState) -> tuple[State, OptimizerState]:
        """Return the next state and moments, with w in the optimizer state, a number for each tensor."""
        adam, kept = self.adam, memory.get("w", {})
        _, after = replace(adam, corrected=False).step(state, direction, memory)
        none = torch.zeros((), dtype=torch.float64)
        w = {n: adam.beta2 * kept.get(n, none) + (1 - adam.beta2) * self.variance for n in direction}
        moved = {}
        for name, noise in w.items():
            square = (after["v"][name] - noise).clamp(min=adam.floor * float(noise))
            moved[name] = state[name] + adam.learning_rate * after["m"][name] / (square.sqrt() + adam.tau)
        return state | moved, after | {"w": kept | w}


part = Adam

"""The body that the adaptive server optimizers share: only the rule for v differs (arXiv 2003.00295, algorithm 2)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from fedpeft.aggregation.server_optimizer import Memory, ServerOptimizer, moment
from fedpeft.parts import setting
from fedpeft.peft.adapter import State


@dataclass(frozen=True)
class AdaptiveServerOptimizer(ServerOptimizer):
    """x <- x + eta m / (sqrt(v) + tau)."""

    learning_rate: float = setting(1e-2, "eta", above=0)
    beta1: float = setting(0.9, "share of the last m that is kept", low=0, below=1)
    tau: float = setting(1e-3, "adaptivity: the smaller, the more the steps are equalised", above=0)

    @abstractmethod
    def second_moment(self, v: Tensor, d: Tensor) -> Tensor:
        """The next v from the last one and the direction."""

    def step(self, state: State, direction: State, memory: Memory) -> tuple[State, Memory]:
        """The next state and moments."""
        last_m, last_v = moment(memory, "m", direction), moment(memory, "v", direction, self.tau**2)
        m = {name: self.beta1 * last_m[name] + (1 - self.beta1) * d for name, d in direction.items()}
        v = {name: self.second_moment(last_v[name], d) for name, d in direction.items()}
        moved = {n: state[n] + self.learning_rate * m[n] / (v[n].sqrt() + self.tau) for n in direction}
        return state | moved, {"m": memory.get("m", {}) | m, "v": memory.get("v", {}) | v}

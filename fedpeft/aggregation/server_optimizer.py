"""Server optimizers: what is done with the aggregated update (the pseudo-gradient) of a round.

They are separate from strategies and compose with linear ones (Reddi et al., arXiv 2003.00295). The adaptive ones share
a body (algorithm 2 there): only the rule for v differs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from fedpeft.families import SERVER_OPTIMIZERS as SERVER_OPTIMIZERS
from fedpeft.parts import setting
from fedpeft.peft.adapter import State

OptimizerState = dict[str, State]
"""What an optimizer keeps between rounds: states by name ("m", "v")."""

AVERAGE = "average"
"""The name of a state that is the result instead of the last one."""


@dataclass(frozen=True)
class Pace:
    """Steps that are a running sum of mean updates:  m <- momentum m + d,  x <- x + learning_rate m."""

    learning_rate: float = 1.0
    momentum: float = 0.0

    @property
    def reach(self) -> float:
        """How many times as far as mean updates that all agree the steps lead, in the long run."""
        return self.learning_rate / (1 - self.momentum)


class ServerOptimizer(ABC):
    """One rule. Subclasses are frozen dataclasses; their fields are the user's settings."""

    keeps_state: ClassVar[bool] = True
    """Whether a step depends on earlier rounds, such as by moments."""

    @abstractmethod
    def step(self, state: State, direction: State, memory: OptimizerState) -> tuple[State, OptimizerState]:
        """The next state and memory; `direction` may hold some of the tensors only, the others stay."""

    @property
    def pace(self) -> Pace | None:
        """How far its steps lead; None, the default: they are not as long as the mean update is."""
        return None

    @property
    def needs_noise(self) -> bool:
        """Whether it is what it says only where the server adds noise (`noised`); by default not."""
        return False

    def noised(self, variance: float) -> ServerOptimizer:
        """What steps along directions with noise of this variance in each entry; by default what steps along others."""
        return self

    def gentler(self, rate: float) -> ServerOptimizer:
        """With steps of `rate` times the length, where that is its own; by default it is the clients' updates'."""
        return self


def drop_momentum(memory: OptimizerState) -> OptimizerState:
    """The memory without momentum: what an undone step is not taken again by."""
    return {label: state for label, state in memory.items() if label != "m"}


def get_moment(memory: OptimizerState, label: str, direction: State, initial: float = 0.0) -> State:
    """The running moment called `label` for the tensors of `direction`; tensors seen first start at `initial`."""
    kept = memory.get(label, {})
    return {name: kept[name] if name in kept else d.new_full(d.shape, initial) for name, d in direction.items()}


@dataclass(frozen=True)
class AdaptiveServerOptimizer(ServerOptimizer):
    """x <- x + eta m / (sqrt(v) + tau)."""

    learning_rate: float = setting(1e-2, "eta", above=0)
    beta1: float = setting(0.9, "share of the last m that is kept", low=0, below=1)
    tau: float = setting(1e-3, "adaptivity: the smaller, the more the steps are equalised", above=0)

    def gentler(self, rate: float) -> ServerOptimizer:
        """A lower eta: a step is as long as eta, however small the updates are."""
        return replace(self, learning_rate=self.learning_rate * rate)

    @abstractmethod
    def second_moment(self, v: Tensor, d: Tensor) -> Tensor:
        """The next v from the last one and the direction."""

    def step(self, state: State, direction: State, memory: OptimizerState) -> tuple[State, OptimizerState]:
        """The next state and moments."""
        last_m, last_v = get_moment(memory, "m", direction), get_moment(memory, "v", direction, self.tau**2)
        m = {name: self.beta1 * last_m[name] + (1 - self.beta1) * d for name, d in direction.items()}
        v = {name: self.second_moment(last_v[name], d) for name, d in direction.items()}
        moved = {n: state[n] + self.learning_rate * m[n] / (v[n].sqrt() + self.tau) for n in direction}
        return state | moved, {"m": memory.get("m", {}) | m, "v": memory.get("v", {}) | v}

"""Server optimizers, which apply the aggregated update (the pseudo-gradient) of a round.

They are separate from strategies and compose with linear ones (Reddi et al., arXiv 2003.00295). The adaptive ones share
algorithm 2 of this paper and differ only in the rule for v.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from fedpeft.parts import setting
from fedpeft.peft.adapter import State

OptimizerState = dict[str, State]
"""States that an optimizer keeps between rounds, by name ("m", "v")."""

AVERAGE = "average"
"""Name of a state that is the result of the run instead of the last state."""


@dataclass(frozen=True)
class Pace:
    """Length of steps that follow a running sum of mean updates:  m <- momentum m + d,  x <- x + learning_rate m."""

    learning_rate: float = 1.0
    momentum: float = 0.0

    @property
    def reach(self) -> float:
        """Distance of the steps in the long run, relative to mean updates that all agree."""
        return self.learning_rate / (1 - self.momentum)


class ServerOptimizer(ABC):
    """One server optimizer. Subclasses are frozen dataclasses; their fields are the user's settings."""

    keeps_state: ClassVar[bool] = True
    """Whether a step depends on earlier rounds, for example by moments."""

    @abstractmethod
    def step(self, state: State, direction: State, memory: OptimizerState) -> tuple[State, OptimizerState]:
        """Return the next state and optimizer state; tensors that `direction` lacks do not change."""

    @property
    def pace(self) -> Pace | None:
        """Length of the steps relative to the mean update; None, the default: they are unrelated."""
        return None

    @property
    def needs_noise(self) -> bool:
        """Whether the optimizer needs noise that the server adds (`correct_for_noise`); by default not."""
        return False

    def correct_for_noise(self, variance: float) -> ServerOptimizer:
        """Return the optimizer for directions with noise of this variance in each entry; by default itself."""
        return self

    def slow_down(self, rate: float) -> ServerOptimizer:
        """Return the optimizer with `rate` times as long steps, unless their length is that of the updates."""
        return self


def drop_momentum(memory: OptimizerState) -> OptimizerState:
    """Return the optimizer state without momentum, which would repeat an undone step."""
    return {label: state for label, state in memory.items() if label != "m"}


def get_moment(memory: OptimizerState, label: str, direction: State, initial: float = 0.0) -> State:
    """Return the running moment `label` of the tensors of `direction`; new tensors start at `initial`."""
    kept = memory.get(label, {})
    return {name: kept[name] if name in kept else d.new_full(d.shape, initial) for name, d in direction.items()}


@dataclass(frozen=True)
class AdaptiveServerOptimizer(ServerOptimizer):
    """x <- x + eta m / (sqrt(v) + tau)."""

    learning_rate: float = setting(1e-2, "eta, the length of a step", above=0)
    beta1: float = setting(0.9, "share of the last m that is kept", low=0, below=1)
    tau: float = setting(1e-3, "adaptivity: the smaller, the more the steps are equalized", above=0)

    def slow_down(self, rate: float) -> ServerOptimizer:
        """Return the optimizer with a lower eta, since a step is as long as eta, however small the updates are."""
        return replace(self, learning_rate=self.learning_rate * rate)

    @abstractmethod
    def second_moment(self, v: Tensor, d: Tensor) -> Tensor:
        """Compute the next v from the last one and the direction."""

    def step(self, state: State, direction: State, memory: OptimizerState) -> tuple[State, OptimizerState]:
        """Return the next state and moments."""
        last_m, last_v = get_moment(memory, "m", direction), get_moment(memory, "v", direction, self.tau**2)
        m = {name: self.beta1 * last_m[name] + (1 - self.beta1) * d for name, d in direction.items()}
        v = {name: self.second_moment(last_v[name], d) for name, d in direction.items()}
        moved = {n: state[n] + self.learning_rate * m[n] / (v[n].sqrt() + self.tau) for n in direction}
        return state | moved, {"m": memory.get("m", {}) | m, "v": memory.get("v", {}) | v}

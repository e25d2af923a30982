"""Plain steps:  x <- x + eta d.  With eta = 1 it is federated averaging."""

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregation.server_optimizer import OptimizerState, Pace, ServerOptimizer
from fedpeft.parts import setting
from fedpeft.peft.adapter import State


@dataclass(frozen=True)
class SGD(ServerOptimizer):
    """A step along the mean update."""

    learning_rate: float = setting(1.0, "eta, the length of a step", above=0)

    keeps_state: ClassVar[bool] = False

    @property
    def pace(self) -> Pace:
        """Length of the mean update, times eta."""
        return Pace(self.learning_rate)

    def step(self, state: State, direction: State, memory: OptimizerState) -> tuple[State, OptimizerState]:
        """Return the next state; the optimizer state does not change."""
        return state | {name: state[name] + self.learning_rate * d for name, d in direction.items()}, memory


part = SGD

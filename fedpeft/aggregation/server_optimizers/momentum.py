"""Server momentum (FedAvgM, Hsu et al., arXiv 1909.06335):  m <- beta m + d,  x <- x + eta m."""

from dataclasses import dataclass

from fedpeft.aggregation.server_optimizer import OptimizerState, Pace, ServerOptimizer, get_moment
from fedpeft.parts import setting
from fedpeft.peft.adapter import State


@dataclass(frozen=True)
class Momentum(ServerOptimizer):
    """A running sum of the mean updates."""

    learning_rate: float = setting(1.0, "eta, the length of a step", above=0)
    beta: float = setting(0.9, "share of the last momentum that is kept", low=0, below=1)

    @property
    def pace(self) -> Pace:
        """Length of the running sum, times eta."""
        return Pace(self.learning_rate, self.beta)

    def step(self, state: State, direction: State, memory: OptimizerState) -> tuple[State, OptimizerState]:
        """Return the next state and momentum."""
        last = get_moment(memory, "m", direction)
        m = {name: self.beta * last[name] + d for name, d in direction.items()}
        moved = {name: state[name] + self.learning_rate * x for name, x in m.items()}
        return state | moved, {"m": memory.get("m", {}) | m}


part = Momentum

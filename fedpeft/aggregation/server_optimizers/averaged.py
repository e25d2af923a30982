"""Exponential average of the states of another server optimizer (Polyak averaging).

    a_t = a_t-1 + (1 - d) / (1 - d^t) (x_t - a_t-1),   the result is a_t; clients go on from x_t

If rounds are noisy, the average has less noise than the last state. It costs no privacy, because the states are already
released (De et al., arXiv 2204.13650, section 3.4, average those of DP-SGD exponentially). The weights of x_1, ..., x_t
add up to 1 from the first round on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from fedpeft.aggregation.server_optimizer import AVERAGE, OptimizerState, Pace, ServerOptimizer
from fedpeft.parts import setting
from fedpeft.parts.families import SERVER_OPTIMIZERS
from fedpeft.peft.adapter import State

COUNT = "averaged"
"""Name of the number of averaged states in the optimizer state."""


@dataclass(frozen=True)
class Averaged(ServerOptimizer):
    """Another server optimizer, and the average of its states beside it."""

    of: str = setting(
        "sgd", "the server optimizer that makes the steps, such as momentum(beta=0.9)", nested=SERVER_OPTIMIZERS
    )
    decay: float = setting(0.9, "share of the average that a round keeps", low=0, below=1)

    def __post_init__(self) -> None:
        """Refuse an `of` that does not name a server optimizer.

        Raises:
            ConfigError: names the server optimizers.
        """
        SERVER_OPTIMIZERS.build(self.of)

    @cached_property
    def inner(self) -> ServerOptimizer:
        """The optimizer that makes the steps."""
        return SERVER_OPTIMIZERS.build(self.of)

    @property
    def pace(self) -> Pace | None:
        """Length of the inner optimizer's steps."""
        return self.inner.pace

    @property
    def needs_noise(self) -> bool:
        """Whether the inner optimizer needs noise that the server adds."""
        return self.inner.needs_noise

    def correct_for_noise(self, variance: float) -> ServerOptimizer:
        """Return this optimizer with an inner one for noise of this variance."""
        return self._replace_inner(self.inner.correct_for_noise(variance))

    def slow_down(self, rate: float) -> ServerOptimizer:
        """Return this optimizer with shorter steps of the inner one."""
        return self._replace_inner(self.inner.slow_down(rate))

    def _replace_inner(self, inner: ServerOptimizer) -> ServerOptimizer:
        other = Averaged(self.of, self.decay)
        vars(other)["inner"] = inner
        return other

    def step(self, state: State, direction: State, memory: OptimizerState) -> tuple[State, OptimizerState]:
        """Return the next state, and the optimizer state with the next average."""
        after, kept = self.inner.step(state, direction, memory)
        count = int(memory[COUNT]["rounds"]) + 1 if COUNT in memory else 1
        share = (1 - self.decay) / (1 - self.decay**count)
        before = memory.get(AVERAGE, after)
        average = {name: before[name] + share * (tensor - before[name]) for name, tensor in after.items()}
        return after, kept | {AVERAGE: average, COUNT: {"rounds": torch.tensor(count)}}


part = Averaged

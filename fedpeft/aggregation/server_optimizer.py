"""Server optimizers: what is done with the aggregated update (the pseudo-gradient) of a round.

They are separate from strategies and compose with linear ones (Reddi et al., arXiv 2003.00295).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from fedpeft.parts import Family
from fedpeft.peft.adapter import State

Memory = dict[str, State]
"""What an optimizer keeps between rounds: states by name ("m", "v")."""


class ServerOptimizer(ABC):
    """One rule. Subclasses are frozen dataclasses; their fields are the user's settings."""

    @abstractmethod
    def step(self, state: State, direction: State, memory: Memory) -> tuple[State, Memory]:
        """The next state and memory; `direction` may hold some of the tensors only, the others stay."""


def moment(memory: Memory, label: str, direction: State, initial: float = 0.0) -> State:
    """The running moment called `label` for the tensors of `direction`; tensors seen first start at `initial`."""
    kept = memory.get(label, {})
    return {name: kept[name] if name in kept else d.new_full(d.shape, initial) for name, d in direction.items()}


SERVER_OPTIMIZERS: Family[ServerOptimizer] = Family("fedpeft.aggregation.server_optimizers", "server optimizer")
"""All server optimizers, by file name."""

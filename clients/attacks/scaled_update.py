"""A scaled update that outweighs those of all others (Bagdasaryan et al., arXiv 1807.00459):  delta <- c delta."""

from dataclasses import dataclass

import torch
from fedpeft.clients.attack import Attack

from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, State


@dataclass(frozen=True)
class ScaledUpdate(Attack):
    """A multiple of the update."""

    factor: float = setting(10.0, "c: factor of the update", above=0)

    def update(self, delta: State, received: State, layout: Layout, generator: torch.Generator) -> State:
        """Return c delta."""
        return {name: self.factor * tensor for name, tensor in delta.items()}


part = ScaledUpdate

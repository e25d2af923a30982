"""Sign flipping: the attacker pushes the global model away from where its data would pull it:  delta <- -c delta."""

from dataclasses import dataclass

import torch
from fedpeft.clients.attack import Attack

from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, State


@dataclass(frozen=True)
class SignFlip(Attack):
    """The negative of the update."""

    strength: float = setting(1.0, "c: factor of the reversed update", above=0)

    def update(self, delta: State, received: State, layout: Layout, generator: torch.Generator) -> State:
        """Return -c delta."""
        return {name: -self.strength * tensor for name, tensor in delta.items()}


part = SignFlip

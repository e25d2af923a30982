"""An update of NaN, which would spoil any mean and so the global model. The server refuses it."""

from dataclasses import dataclass

import torch
from fedpeft.clients.attack import Attack

from fedpeft.peft.adapter import Layout, State


@dataclass(frozen=True)
class NotANumber(Attack):
    """NaN in every entry of the update."""

    def update(self, delta: State, received: State, layout: Layout, generator: torch.Generator) -> State:
        """Return NaN in the shapes of `delta`."""
        return {name: torch.full_like(tensor, float("nan")) for name, tensor in delta.items()}


part = NotANumber

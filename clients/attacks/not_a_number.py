"""An update of NaN: one such number in a mean, and the global model is gone. The server refuses it."""

from dataclasses import dataclass

import torch
from fedpeft.clients.attack import Attack

from fedpeft.peft.adapter import Layout, State


@dataclass(frozen=True)
class NotANumber(Attack):
    """NaN everywhere."""

    def update(self, delta: State, received: State, layout: Layout, generator: torch.Generator) -> State:
        """NaN."""
        return {name: torch.full_like(tensor, float("nan")) for name, tensor in delta.items()}


part = NotANumber

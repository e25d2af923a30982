"""Other factors of the same product:  B <- B G, A <- G^-1 A with G = c Q and Q a random rotation.

The attack is harmless for a rule that reads effective weights, and ruinous for one that averages factors. It needs both
factors: if a client hands in only one of them, the update stays as it is.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from fedpeft.clients.attack import Attack

from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, State


@dataclass(frozen=True)
class FactorRescaling(Attack):
    """The same effective weight, written in other factors."""

    factor: float = setting(10.0, "c: how much longer B becomes, and A shorter", above=0)

    needs_factors: ClassVar[bool] = True

    def update(self, delta: State, received: State, layout: Layout, generator: torch.Generator) -> State:
        """Return the deltas that lead to the factors B G and G^-1 A."""
        changed = dict(delta)
        for pair in layout.pairs:
            if pair.A in delta and pair.B in delta:
                lora_a, lora_b = received[pair.A] + delta[pair.A], received[pair.B] + delta[pair.B]
                square = torch.randn(len(lora_a), len(lora_a), generator=generator, dtype=torch.float64)
                rotation = torch.linalg.qr(square).Q.to(lora_a.dtype)
                changed[pair.A] = rotation.T @ lora_a / self.factor - received[pair.A]
                changed[pair.B] = lora_b @ rotation * self.factor - received[pair.B]
        return changed


part = FactorRescaling

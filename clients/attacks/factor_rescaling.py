"""Other factors of the same product:  B <- B G, A <- G^-1 A with G = c Q and Q a random rotation.

Harmless for a rule that reads effective weights, ruinous for one that averages factors. Where only one of the two
factors is handed in, the attack can't be made and the update stays as it is.
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
        """Deltas to B G and G^-1 A."""
        changed = dict(delta)
        for pair in layout.pairs:
            if pair.A in delta and pair.B in delta:
                A, B = received[pair.A] + delta[pair.A], received[pair.B] + delta[pair.B]
                square = torch.randn(len(A), len(A), generator=generator, dtype=torch.float64)
                Q = torch.linalg.qr(square).Q.to(A.dtype)
                changed[pair.A] = Q.T @ A / self.factor - received[pair.A]
                changed[pair.B] = B @ Q * self.factor - received[pair.B]
        return changed


part = FactorRescaling

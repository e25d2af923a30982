"""Gradient assembly: factors that each look benign, with a product that does not (after arXiv 2601.00566).

A server that looks at A and B one at a time sees changes of honest length and likeness. What it adds to the weights is
their product. The attacker minimizes the part of its change of the weight that lies along the honest change D = B_k A_k
- B A,

    minimize  <(B + dB') (A + dA') - B A, D>
    subject to  |dA'| = |dA|,  cos(dA', dA) >= likeness,  and the same for dB'

one factor at a time, three times each. With the other factor fixed the objective is linear, <dA', G>, G = (B + dB')^T
D. Its minimum is -G, turned no further from dA than `likeness` allows.

Rules in the geometry of the weights (krum, median, norm_bound) see the product. The objective and the alternation are
ours; we know the paper by its abstract only. Other tensors, such as the head, are handed in as they are.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from fedpeft.clients.attack import Attack
from torch import Tensor

from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, State

PASSES = 3


@dataclass(frozen=True)
class GradientAssembly(Attack):
    """The most harmful product of factors that pass for honest ones."""

    likeness: float = setting(
        0.3, "least cosine between a factor's change and its honest one; 1: honest", low=0, high=1
    )

    needs_factors: ClassVar[bool] = True

    def update(self, delta: State, received: State, layout: Layout, generator: torch.Generator) -> State:
        """Return other deltas of the factors, each as long as the honest one."""
        changed = dict(delta)
        for pair in layout.pairs:
            lora_a, lora_b = received[pair.A].double(), received[pair.B].double()
            honest = {name: delta[name].double() for name in (pair.A, pair.B) if name in delta}
            now = {pair.A: lora_a, pair.B: lora_b}
            now |= {name: now[name] + change for name, change in honest.items()}
            target = now[pair.B] @ now[pair.A] - lora_b @ lora_a
            for _ in range(PASSES):
                for name, change in honest.items():
                    gradient = now[pair.B].T @ target if name == pair.A else target @ now[pair.A].T
                    now[name] = received[name].double() + minimize_product(gradient, change, self.likeness)
            changed |= {name: (now[name] - received[name].double()).to(delta[name].dtype) for name in honest}
        return changed


def minimize_product(gradient: Tensor, honest: Tensor, likeness: float) -> Tensor:
    """Return the X with the least <X, gradient>.

    X is as long as `honest`, and its cosine to `honest` is at least `likeness`, 0 to 1.
    """
    length, size = honest.norm(), gradient.norm()
    if length == 0 or size == 0:
        return honest
    along = honest / length
    aim = -gradient / size
    cosine = (aim * along).sum()
    if cosine >= likeness:
        found: Tensor = length * aim
        return found
    across = aim - cosine * along
    if across.norm() < 1e-12:  # the gradient is parallel to the honest change: every direction across it is as good
        return honest
    turned: Tensor = length * (likeness * along + (1 - likeness**2) ** 0.5 * across / across.norm())
    return turned


part = GradientAssembly

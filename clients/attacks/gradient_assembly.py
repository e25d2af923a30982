"""Gradient assembly: factors that look benign apart, whose product is not (after arXiv 2601.00566).

A server that looks at A and B one by one sees changes of honest length and likeness; what it adds to the weights is
their product. The attacker minimises the part of its change of the weight that lies along the honest one, D = B_k A_k -
B A,

    minimise  <(B + dB') (A + dA') - B A, D>
    subject to  |dA'| = |dA|,  cos(dA', dA) >= likeness,  and the same for dB'

one factor at a time, three times each: with the other one fixed it is linear, <dA', G>, G = (B + dB')^T D, and the
minimum is -G turned no further than `likeness` allows. Rules in the geometry of the weights (krum, median, norm_bound)
see the product. The objective and the alternation are ours; the paper's are not known here beyond its abstract. Other
tensors, such as the head, are handed in as they are.
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
    """The worst product of factors that pass for honest ones."""

    likeness: float = setting(
        0.3, "least cosine between a factor's change and its honest one; 1: honest", low=0, high=1
    )

    needs_factors: ClassVar[bool] = True

    def update(self, delta: State, received: State, layout: Layout, generator: torch.Generator) -> State:
        """Other deltas of the factors, of the same length each."""
        changed = dict(delta)
        for pair in layout.pairs:
            A, B = received[pair.A].double(), received[pair.B].double()
            honest = {name: delta[name].double() for name in (pair.A, pair.B) if name in delta}
            now = {pair.A: A, pair.B: B}
            now |= {name: now[name] + change for name, change in honest.items()}
            D = now[pair.B] @ now[pair.A] - B @ A
            for _ in range(PASSES):
                for name, change in honest.items():
                    G = now[pair.B].T @ D if name == pair.A else D @ now[pair.A].T
                    now[name] = received[name].double() + minimize_product(G, change, self.likeness)
            changed |= {name: (now[name] - received[name].double()).to(delta[name].dtype) for name in honest}
        return changed


def minimize_product(G: Tensor, honest: Tensor, likeness: float) -> Tensor:
    """Of all X as long as `honest`, at a cosine of at least `likeness` to it, the one of least <X, G>."""
    length, size = honest.norm(), G.norm()
    if length == 0 or size == 0:
        return honest
    along = honest / length
    aim = -G / size
    cosine = (aim * along).sum()
    if cosine >= likeness:
        found: Tensor = length * aim
        return found
    across = aim - cosine * along
    if across.norm() < 1e-12:  # G lies along the honest change: no direction across it is better than another
        return honest
    turned: Tensor = length * (likeness * along + (1 - likeness**2) ** 0.5 * across / across.norm())
    return turned


part = GradientAssembly

"""Gram LoRA: a small matrix G is trained, and G^T G acts between two frozen frames (FLoRG).

    y = W0 x + (alpha / r) L G^T G R x,   L (out, k) and R (k, in) fixed, with orthonormal columns and rows; G (r, k)

Clients train and send r k numbers per layer (Meng, Tang, Wong, arXiv 2602.17095). The update is quadratic in G, and G =
0 has no gradient. So G starts small and random, and the model starts slightly off the base. In the frames of L and R an
update is positive semi-definite, which is a limit: for each pair of their vectors u_i^T dW v_i >= 0.

The paper asks for fixed semi-orthogonal frames. Ours are the k leading singular vectors of W0
(`fedpeft.peft.framed_layers`, which calls them B and A). The result is saved as a standard LoRA adapter with the
factors L G^T and G R.

Use it with `florg`, the strategy that it is made for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.models.layers import declare_layers
from fedpeft.models.task import FederatedModel
from fedpeft.parts import setting
from fedpeft.peft.abilities import WeightChanges
from fedpeft.peft.adapter import JointMeaning, State
from fedpeft.peft.framed_layers import FramedLayer, FramedMethod, StackedFramedLayer
from fedpeft.peft.low_rank import LowRank
from fedpeft.peft.method import draw_uniform

START = 0.02
"""Bound of G's entries at the start, which are uniform in +-START."""


class GramLora(FramedLayer):
    """A frozen layer with G^T G between its frames."""

    trained = "lora_G"

    def apply_middle(self, seen: Tensor, middle: Tensor) -> Tensor:
        """Multiply by G and by its transpose."""
        return seen @ middle.T @ (middle * self.scale)

    def product(self, middle: Tensor) -> LowRank:
        """Return the factors L G^T and G R."""
        gram_root = middle.to(self.B.dtype)
        return LowRank(self.B @ gram_root.T, gram_root @ self.A)


class StackedGramLora(StackedFramedLayer):
    """A frozen layer with K clients' G^T G between its frames."""

    trained = "lora_G"

    def apply_middle(self, seen: Tensor, middle: Tensor) -> Tensor:
        """Multiply by each client's G and by its transpose."""
        active = self.select_active(middle, seen)
        return torch.bmm(torch.bmm(seen, active.transpose(1, 2)), active * self.select_active(self.scales, seen))


@dataclass(frozen=True)
class LoraGram(FramedMethod):
    """The Gram matrix of a small matrix between fixed frames."""

    rank: int = setting(8, "rows of G: the rank of the update", low=1, high=1024)
    width: int = setting(64, "k, columns of G: number of singular vectors of the frozen weights", low=1)
    alpha: float = setting(32.0, "numerator of the scale alpha / rank", above=0)
    targets: str | tuple[str, ...] = setting("all", "linear layers by the end of their name, or all")
    layers: int | tuple[int, ...] | None = declare_layers()

    layer: ClassVar[type[FramedLayer]] = GramLora
    stacked: ClassVar[type[StackedFramedLayer]] = StackedGramLora
    joint_meaning: ClassVar[JointMeaning] = "Gram matrix"
    tensors: ClassVar[tuple[str, ...]] = ("lora_G.weight",)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of G: a row for each rank and a column for each vector of a frame."""
        return self.rank, self.width

    def start(self, model: FederatedModel, seed: int) -> State:
        """Return G small and random."""
        state = super().start(model, seed)
        for name in state:
            if name.endswith(self.tensors):
                draw_uniform(state, name, seed, START)
        return state

    def weight_changes(self, model: FederatedModel) -> WeightChanges:
        """Return a function that computes (alpha / r) L G^T G R of each layer."""
        return lambda state, _: {module: product.to_dense() for module, product in self.changes(model, state).items()}


part = LoraGram

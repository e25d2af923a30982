"""LoRA-SB: a small square matrix is trained between two frozen factors (Ponkshe et al., arXiv 2411.19557).

    y = W0 x + (alpha / r) B R A x,   A (r, in) and B (out, r) fixed, R (r, r) trained, R = 0 at first

B and A are the leading singular vectors of W0 (`fedpeft.peft.framed_layers`), so the start is that of LoRA-XS.
Deviation: LoRA-SB takes B, R and A from the singular vectors and values of the first update, with no scale. That costs
privacy if the data are private, while everyone has the weights. The result is saved as a standard
LoRA adapter with the factors B R and A.

Use it if very few numbers may travel, for example under noise or on slow links.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.models.layers import declare_layers
from fedpeft.parts import setting
from fedpeft.peft.framed_layers import FramedLayer, FramedMethod, StackedFramedLayer
from fedpeft.peft.low_rank import LowRank


class SquareLora(FramedLayer):
    """A frozen layer with R between its frames."""

    trained = "lora_R"

    def apply_middle(self, seen: Tensor, middle: Tensor) -> Tensor:
        """Multiply by R."""
        return seen @ (middle * self.scale).T

    def product(self, middle: Tensor) -> LowRank:
        """Return the factors B R and A."""
        return LowRank(self.B @ middle.to(self.B.dtype), self.A)


class StackedSquareLora(StackedFramedLayer):
    """A frozen layer with K clients' R between its frames."""

    trained = "lora_R"

    def apply_middle(self, seen: Tensor, middle: Tensor) -> Tensor:
        """Multiply by each client's R."""
        return torch.bmm(seen, self.select_active(middle * self.scales, seen).transpose(1, 2))


@dataclass(frozen=True)
class LoraSB(FramedMethod):
    """A square matrix between fixed factors."""

    rank: int = setting(16, "rank of the factors; rank^2 numbers per layer are trained", low=1, high=1024)
    alpha: float = setting(16.0, "numerator of the scale alpha / rank", above=0)
    targets: str | tuple[str, ...] = setting("all", "linear layers by the end of their name, or all")
    layers: int | tuple[int, ...] | None = declare_layers()

    layer: ClassVar[type[FramedLayer]] = SquareLora
    stacked: ClassVar[type[StackedFramedLayer]] = StackedSquareLora
    mixed_sizes: ClassVar[bool] = True
    tensors: ClassVar[tuple[str, ...]] = ("lora_R.weight",)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of R, which is square."""
        return self.rank, self.rank


part = LoraSB

"""MiSS: one small matrix is added to each block of the weight's input columns (Kang et al., arXiv 2409.15371).

    y = W0 x + D^T S x,   S x = sum over the blocks x[0:r], x[r:2r], .. of the input,   D (r, out), D = 0 at first

The change of the weight repeats every r columns: dW[:, j] = D[j mod r, :]. It has rank r and half the numbers of LoRA.
It is linear in D, and all clients share S, so the plain mean of D is the exact mean of the weights. If r does not
divide the width of the input, the last block is shorter.

Read: the code of the `peft` library (MissConfig) that trains and saves it, not the paper. Deviations: peft's variants
"bat" and "mini" are left out. All clients have the same rank, because blocks of different ranks do not match.

Use it if bytes matter and aggregation must be exact: it has half the numbers of LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.models.dtypes import get_wide_dtype
from fedpeft.models.layers import declare_layers, find_target_layers, get_innermost
from fedpeft.models.quantized_base import get_weight_dtype
from fedpeft.parts import setting
from fedpeft.peft.method import PeftMethod
from fedpeft.peft.stacked_layers import StackedLayer


def sum_blocks(x: Tensor, rank: int) -> Tensor:
    """Return S x: the input (..., in) summed over its blocks of `rank` entries, (..., rank)."""
    x = nn.functional.pad(x, (0, -x.shape[-1] % rank))
    blocks: Tensor = x.reshape(*x.shape[:-1], -1, rank).sum(-2)
    return blocks


class StackedMiSS(StackedLayer):
    """A frozen layer and K clients' D (K, r, out)."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], clients: int) -> None:
        """Create zero matrices D for K `clients`, each of `shape` (r, out)."""
        super().__init__(clients)
        self.base_layer = layer
        self.miss_block = nn.Parameter(
            torch.zeros(clients, *shape, dtype=get_wide_dtype(get_weight_dtype(get_innermost(layer))))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(K * b, T, in) to (K * b, T, out)."""
        y: Tensor = self.base_layer(x)
        matrices = self.select_active(self.miss_block, x)
        blocks = self.split_by_client(sum_blocks(x, matrices.shape[-2])).to(matrices.dtype)
        return y + torch.bmm(blocks, matrices).view_as(y).to(y.dtype)


@dataclass(frozen=True)
class MiSS(PeftMethod):
    """A matrix that is shared by all blocks of a layer's input."""

    rank: int = setting(16, "entries of a block, and rows of D", low=1, high=1024)
    targets: str | tuple[str, ...] = setting("all", "linear layers by the end of their name, or all")
    layers: int | tuple[int, ...] | None = declare_layers()

    batched: ClassVar[bool] = True
    merges: ClassVar[bool] = True
    composes: ClassVar[bool] = True
    tensors: ClassVar[tuple[str, ...]] = ("miss_block",)
    called_elsewhere: ClassVar[dict[str, str]] = {"r": "rank", "target_modules": "targets"}

    def config(self, base: nn.Module) -> Any:
        """Return a `peft.MissConfig` that names every adapted layer in full."""
        from peft import MissConfig

        return MissConfig(r=self.rank, target_modules=find_target_layers(base, self.targets, self.layers))

    def stack(self, path: str, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int) -> StackedLayer:
        """Return the frozen layer with K matrices D."""
        return StackedMiSS(layer, shapes["miss_block"], clients)


part = MiSS

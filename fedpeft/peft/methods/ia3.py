"""(IA)3: learned vectors that rescale keys, values and the feed-forward input (Liu et al., arXiv 2205.05638).

y = l * (W x) for attention layers,   y = W (l * x) for the second feed-forward layer;   l starts at one

Use it if only a few thousand numbers may travel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.errors import ModelError
from fedpeft.models.dtypes import get_wide_dtype
from fedpeft.models.layers import declare_layers, find_by_endings, find_target_layers, get_innermost
from fedpeft.parts import setting
from fedpeft.peft.method import PeftMethod
from fedpeft.peft.stacked_layers import StackedLayer

ATTENTION = (
    ".key",
    ".value",
    ".k_proj",
    ".v_proj",
    ".c_attn",
    ".k_lin",
    ".v_lin",
    ".SelfAttention.k",
    ".SelfAttention.v",
)
FEEDFORWARD = (".output.dense", ".down_proj", ".fc2", ".mlp.c_proj", ".ffn.lin2", ".DenseReluDense.wo", ".ffn_output")
"""The same as peft's own defaults: in BERT the name output.dense also selects the attention's output layer."""


class StackedIA3(StackedLayer):
    """A frozen layer whose output (vectors (K, out, 1)) or input (vectors (K, 1, in)) is rescaled per client."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], clients: int) -> None:
        """Create vectors of ones for K `clients`, each of `shape` (out, 1) or (1, in)."""
        super().__init__(clients)
        self.base_layer = layer
        inner: Any = get_innermost(layer)
        self.ia3_l = nn.Parameter(torch.ones(clients, *shape, dtype=get_wide_dtype(inner.weight.dtype)))
        self.scales_input = shape[0] == 1

    def forward(self, x: Tensor) -> Tensor:
        """(K * b, T, in) to (K * b, T, out)."""
        vectors = self.select_active(self.ia3_l, x).flatten(1).unsqueeze(1)
        if self.scales_input:
            y: Tensor = self.base_layer((self.split_by_client(x) * vectors).view_as(x))
            return y
        y = self.base_layer(x)
        return (self.split_by_client(y) * vectors).view_as(y)


@dataclass(frozen=True)
class IA3(PeftMethod):
    """Rescaling vectors beside frozen linear layers."""

    targets: str | tuple[str, ...] = setting(
        "auto", "layers to rescale; auto: keys, values and the second feed-forward layer, by their usual names"
    )
    feedforward: str | tuple[str, ...] = setting("auto", "those targets whose input is rescaled instead of the output")
    layers: int | tuple[int, ...] | None = declare_layers()

    batched: ClassVar[bool] = True
    merges: ClassVar[bool] = True
    composes: ClassVar[bool] = True
    tensors: ClassVar[tuple[str, ...]] = ("ia3_l",)

    def config(self, base: nn.Module) -> Any:
        """Return a `peft.IA3Config` that names every adapted layer in full."""
        from peft import IA3Config

        targets = self._find_targets(base, self.targets, ATTENTION + FEEDFORWARD)
        inputs = [t for t in self._find_targets(base, self.feedforward, FEEDFORWARD) if t in set(targets)]
        return IA3Config(target_modules=targets, feedforward_modules=inputs)

    def _find_targets(self, base: nn.Module, targets: str | tuple[str, ...], usual: tuple[str, ...]) -> list[str]:
        if targets != "auto":
            return find_target_layers(base, targets, self.layers)
        known = find_by_endings(base, usual, self.layers)
        if not known:
            raise ModelError(
                f"FP4064 ia3 finds no layers of the usual names in {type(base).__name__}; name them with targets=(...)"
            )
        return known

    def stack(self, path: str, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int) -> StackedLayer:
        """Return the frozen layer with the vectors of K clients."""
        return StackedIA3(layer, shapes["ia3_l"], clients)


part = IA3

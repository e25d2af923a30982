"""BitFit: only biases are trained (Ben Zaken et al., arXiv 2106.10199).

    y = W0 x + b,   b starts at the base's own;   likewise the biases of layer norms

Biases enter linearly from a shared start: the plain mean is exact.

Deviations. Only the biases of the blocks that `layers` selects are trained, as for the other methods here (`layers=0`
selects all blocks). Biases of keys stay frozen: they add the same to the scores of all positions and change nothing.

Use it beside another method, as in `lora + bitfit`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.errors import ModelError
from fedpeft.models.dtypes import get_adapter_dtype, get_wide_dtype
from fedpeft.models.layers import KEY_PROJECTIONS, choose_blocks, declare_layers, get_innermost, replace
from fedpeft.models.task import FederatedModel
from fedpeft.peft.method import PeftMethod
from fedpeft.peft.stacked_layers import StackedLayer


class Biased(nn.Module):
    """A frozen layer without its bias, and the bias, trained in at least fp32."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        """Take the bias out of `layer` and make it a parameter in `dtype`."""
        super().__init__()
        self.bias = nn.Parameter(take_bias(layer).to(dtype, copy=True))
        self.base_layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer's output with the trained bias."""
        y: Tensor = self.base_layer(x)
        return y + self.bias.to(y.dtype)


class StackedBias(StackedLayer):
    """A frozen layer and K clients' biases (K, out)."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], clients: int) -> None:
        """Take the bias out of `layer` and create the biases of K `clients`."""
        super().__init__(clients)
        dtype = get_wide_dtype(take_bias(layer).dtype)
        self.base_layer = layer
        self.bias = nn.Parameter(torch.zeros(clients, *shape, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(K * b, ..., in) to (K * b, ..., out)."""
        y = self.base_layer(x)
        return (self.split_by_client(y) + self.select_active(self.bias, y).unsqueeze(1)).view_as(y)


def take_bias(layer: nn.Module) -> Tensor:
    """Remove the bias from the innermost layer of `layer` and return it."""
    module: Any = get_innermost(layer)
    bias: Tensor = module.bias.detach()
    module.bias = None
    return bias


@dataclass(frozen=True)
class BitFit(PeftMethod):
    """The biases of linear layers and layer norms."""

    layers: int | tuple[int, ...] | None = declare_layers()

    batched: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    composes: ClassVar[bool] = True
    tensors: ClassVar[tuple[str, ...]] = ("bias",)

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Make the biases trainable."""
        paths = [
            f"{path}.{name}"
            for path, block in choose_blocks(model.base, self.layers, "bitfit").items()
            for name, layer in block.named_modules()
            if isinstance(layer, nn.Linear | nn.LayerNorm)
            and layer.bias is not None
            and not layer.bias.requires_grad
            and name.replace(".base_layer", "").rpartition(".")[2] not in KEY_PROJECTIONS
        ]
        if not paths:
            raise ModelError(f"FP4060 {type(model.base).__name__} has no biases for bitfit to train; use ia3 or lora")
        for name in paths:
            replace(model.base, name, Biased(model.base.get_submodule(name), get_adapter_dtype(dtype)))

    def merge_adapter(self, model: FederatedModel) -> nn.Module:
        """Return the base with the trained biases."""
        for name, layer in list(model.base.named_modules()):
            if isinstance(layer, Biased):
                inner: Any = layer.base_layer
                inner.bias = nn.Parameter(layer.bias.detach().to(inner.weight.dtype), requires_grad=False)
                replace(model.base, name, inner)
        return model.base

    def stack(self, path: str, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int) -> StackedLayer:
        """Return the frozen layer with the biases of K clients."""
        return StackedBias(layer, shapes["bias"], clients)


part = BitFit

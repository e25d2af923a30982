"""Layers that serve many clients in one pass.

The frozen base is shared: one large matrix product for the tokens of all clients, and no weight gradients. What
differs between clients is stacked: a parameter of shape S becomes one of shape (K, *S), applied by batched products.
Inputs are (K * b, T, d), the rows of client 0 first, then those of client 1, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpeft.models.layers import linear_layers
from fedpeft.models.widened import widened_linear
from fedpeft.peft.adapter import ClientForm

Kernel = Literal["native", "onednn", "widened"]
"""How frozen products are computed: `native` is torch's own `F.linear`; `onednn` calls oneDNN directly (CPU only);
`widened` multiplies bf16 in fp32 and rounds the result, for CPUs that have no bf16 instructions."""

_onednn: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise


class _OneDNNLinear(torch.autograd.Function):
    """y = x W^T + b with a frozen W: the only gradient is that of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, transposed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.transposed = transposed
        return _onednn(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _onednn(gradients[0].contiguous(), ctx.transposed, None, "none", [], ""), None, None, None


class FrozenLinear(nn.Module):
    """A frozen linear layer, (out, in)."""

    def __init__(self, layer: nn.Linear, kernel: Kernel) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.kernel = kernel
        self.set_weight(layer.weight.detach())

    def set_weight(self, weight: Tensor) -> None:
        """Take `weight` (out, in) instead of the present one."""
        self.weight = weight
        self.transposed = weight.t().contiguous() if self.kernel == "onednn" else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if self.kernel == "widened":
            return widened_linear(x, self.weight, self.bias)
        if self.transposed is None:
            return F.linear(x, self.weight, self.bias)
        y: Tensor
        if torch.is_grad_enabled() and x.requires_grad:
            y = _OneDNNLinear.apply(x, self.weight, self.transposed, self.bias)  # type: ignore[no-untyped-call]
        else:
            y = _onednn(x, self.weight, self.bias, "none", [], "")
        return y


class StackedLayer(nn.Module):
    """A layer with K clients' parameters; only the first `active` of them take part in the pass."""

    active: int

    def __init__(self, clients: int) -> None:
        super().__init__()
        self.active = clients

    def set_forms(self, forms: Sequence[ClientForm | None]) -> None:
        """LoRA rank and alpha of the active clients, in order; other layers have none."""

    def per_client(self, x: Tensor) -> Tensor:
        """(K * b, ..., d) as (K, rows, d)."""
        return x.reshape(self.active, -1, x.shape[-1])

    def of_active(self, parameter: Tensor, like: Tensor) -> Tensor:
        """The active clients' part of a stacked parameter, in the dtype of `like`."""
        return parameter[: self.active].to(like.dtype)


class StackedWeight(nn.Module):
    """Holds one stacked tensor as `weight`, so that its canonical name is that of the single-client layer."""

    def __init__(self, clients: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(clients, *shape, dtype=dtype))


class StackedLinear(StackedLayer):
    """K clients' own linear layers (a classification head): weight (K, out, in), bias (K, out)."""

    def __init__(self, layer: nn.Linear, clients: int) -> None:
        super().__init__(clients)
        out_features, in_features = layer.weight.shape
        dtype = layer.weight.dtype
        self.weight = nn.Parameter(torch.zeros(clients, out_features, in_features, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(clients, out_features, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(K * b, in) to (K * b, out)."""
        weight, bias = self.of_active(self.weight, x), self.of_active(self.bias, x)
        return torch.baddbmm(bias.unsqueeze(1), self.per_client(x), weight.transpose(1, 2)).flatten(0, 1)


def fast_linears(base: nn.Module, kernel: Kernel) -> None:
    """Replace every frozen linear layer inside the transformer blocks of `base` by a fast one, in place."""
    for path, layer in linear_layers(base).items():
        replace(base, path, FrozenLinear(layer, kernel))


def replace(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at `path` of `root`."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)

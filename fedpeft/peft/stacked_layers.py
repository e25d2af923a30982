"""Layers that serve many clients in one pass.

The frozen base is shared: one large matrix product for the tokens of all clients, and no weight gradients. What
differs between clients is stacked: a parameter of shape S becomes one of shape (K, *S), applied by batched products.
Inputs are (K * b, T, d), the rows of client 0 first, then those of client 1, and so on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.models.layers import get_innermost
from fedpeft.models.packed_tokens import PackedTokens
from fedpeft.peft.adapter import AdapterShape


class StackedLayer(nn.Module):
    """A layer with K clients' parameters; only the first `active` of them take part in the pass.

    Attributes:
        active: how many.
        packed: says which tokens are whose, where rows come without padding; None: rows are equally long.
    """

    active: int
    packed: PackedTokens | None = None

    @property
    def packs(self) -> bool:
        """Whether it can take rows without padding."""
        return False

    def __init__(self, clients: int) -> None:
        super().__init__()
        self.active = clients

    def set_forms(self, forms: Sequence[AdapterShape | None]) -> None:
        """LoRA rank and alpha of the active clients, in order; other layers have none."""

    def split_by_client(self, x: Tensor) -> Tensor:
        """(K * b, ..., d) as (K, rows, d)."""
        return x.reshape(self.active, -1, x.shape[-1])

    def select_active(self, parameter: Tensor, like: Tensor) -> Tensor:
        """The active clients' part of a stacked parameter, in the dtype of `like`."""
        return parameter[: self.active].to(like.dtype)


class ScaledLayer(StackedLayer):
    """A layer of low rank, whose clients have scales of their own: `scales`, (K, 1, 1)."""

    scales: Tensor

    def __init__(self, clients: int, dtype: torch.dtype) -> None:
        super().__init__(clients)
        self.register_buffer("scales", torch.ones(clients, 1, 1, dtype=dtype), persistent=False)

    def set_forms(self, forms: Sequence[AdapterShape | None]) -> None:
        """The clients' own scales."""
        for k, form in enumerate(forms):
            self.scales[k] = form.scale if form is not None else 1.0


class NamedWeights(StackedLayer):
    """A frozen layer, and weights of K clients by name, (K, ...), or of one client alone; zeros at first."""

    def __init__(self, layer: Any, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, clients: int) -> None:
        super().__init__(max(clients, 1))
        self.base_layer, self.shapes = layer, shapes
        inner: Any = get_innermost(layer)
        for name, shape in shapes.items():
            held = nn.Module()
            whole = (clients, *shape) if clients else shape
            held.weight = nn.Parameter(torch.zeros(whole, dtype=dtype, device=inner.weight.device))
            self.add_module(name, held)

    def stack(self, name: str, like: Tensor) -> Tensor:
        """One of the weights, (active clients, ...)."""
        weight: Tensor = self.get_submodule(name).weight  # type: ignore[assignment]
        return self.select_active(weight.reshape(-1, *self.shapes[name]), like)


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
        weight, bias = self.select_active(self.weight, x), self.select_active(self.bias, x)
        return torch.baddbmm(bias.unsqueeze(1), self.split_by_client(x), weight.transpose(1, 2)).flatten(0, 1)

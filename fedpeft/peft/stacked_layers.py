"""Layers that serve many clients in one pass.

All clients share the frozen base: one large matrix product for all tokens, and no weight gradients. The parameters that
differ between clients are stacked: a parameter of shape S becomes one of shape (K, *S), used in batched products.
Inputs are (K * b, T, d): the examples of client 0 first, then those of client 1, and so on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fedpeft.models.layers import get_innermost
from fedpeft.peft.adapter import AdapterShape

if TYPE_CHECKING:
    from fedpeft.models.packed_tokens import PackedTokens


class StackedLayer(nn.Module):
    """A layer with K clients' parameters; only the first `active` clients take part in the pass.

    Attributes:
        active: number of clients in the pass.
        packed: which tokens belong to which client, for input without padding; None: all examples have one length.
    """

    active: int
    packed: PackedTokens | None = None

    def __init__(self, clients: int) -> None:
        """Create the layer for `clients` clients, all active."""
        super().__init__()
        self.active = clients

    def set_forms(self, forms: Sequence[AdapterShape | None]) -> None:
        """Set LoRA rank and alpha of the active clients, in order; layers without them ignore the call."""

    def split_by_client(self, x: Tensor) -> Tensor:
        """Reshape (K * b, ..., d) to (K, rows, d)."""
        return x.reshape(self.active, -1, x.shape[-1])

    def select_active(self, parameter: Tensor, like: Tensor) -> Tensor:
        """Return the active clients' part of a stacked parameter in the dtype of `like`."""
        return parameter[: self.active].to(like.dtype)


@runtime_checkable
class PacksTokens(Protocol):
    """A layer that can accept input without padding."""

    @property
    def packs(self) -> bool:
        """Whether it does."""


class ScaledLayer(StackedLayer):
    """A low-rank layer with one scale per client: `scales` (K, 1, 1)."""

    scales: Tensor

    def __init__(self, clients: int, dtype: torch.dtype) -> None:
        """Create the layer with scales of 1."""
        super().__init__(clients)
        self.register_buffer("scales", torch.ones(clients, 1, 1, dtype=dtype), persistent=False)

    def set_forms(self, forms: Sequence[AdapterShape | None]) -> None:
        """Set the clients' scales; None stands for 1."""
        for k, form in enumerate(forms):
            self.scales[k] = form.scale if form is not None else 1.0


class NamedWeights(StackedLayer):
    """A frozen layer with named weights of K clients, (K, ...), or of one client; they are zeros at first."""

    def __init__(self, layer: Any, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, clients: int) -> None:
        """Create a weight for each name in `shapes`; `clients` 0 stands for one client without the leading axis."""
        super().__init__(max(clients, 1))
        self.base_layer, self.shapes = layer, shapes
        inner: Any = get_innermost(layer)
        for name, shape in shapes.items():
            held = nn.Module()
            whole = (clients, *shape) if clients else shape
            held.weight = nn.Parameter(torch.zeros(whole, dtype=dtype, device=inner.weight.device))
            self.add_module(name, held)

    def stack(self, name: str, like: Tensor) -> Tensor:
        """Return the weight `name` as (active clients, ...) in the dtype of `like`."""
        weight: Tensor = self.get_submodule(name).weight  # type: ignore[assignment]
        return self.select_active(weight.reshape(-1, *self.shapes[name]), like)


class StackedWeight(nn.Module):
    """A module with one stacked tensor `weight`, whose canonical name equals that of the single-client layer."""

    def __init__(self, clients: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Create zeros of shape (clients, *shape)."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(clients, *shape, dtype=dtype))


class StackedLinear(StackedLayer):
    """Linear layers of K clients, such as classification heads: weight (K, out, in), bias (K, out)."""

    def __init__(self, layer: nn.Linear, clients: int) -> None:
        """Create zeros for `clients` clients in the shape and dtype of `layer`."""
        super().__init__(clients)
        out_features, in_features = layer.weight.shape
        dtype = layer.weight.dtype
        self.weight = nn.Parameter(torch.zeros(clients, out_features, in_features, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(clients, out_features, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(K * b, in) to (K * b, out)."""
        weight, bias = self.select_active(self.weight, x), self.select_active(self.bias, x)
        return torch.baddbmm(bias.unsqueeze(1), self.split_by_client(x), weight.transpose(1, 2)).flatten(0, 1)

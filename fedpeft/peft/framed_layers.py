"""Layers with a small trained matrix M between two fixed frames that are computed from the frozen weights.

    y = W0 x + B f(M) A x,   A (k, in) and B (out, k) fixed, with orthonormal rows and columns

B and A are the leading singular vectors of W0, as in LoRA-XS (Balazy et al., arXiv 2405.17604). Everyone can compute
them, so they are never sent. A method defines M and f (`fedpeft.peft.methods.lora_sb`, `lora_gram`). The result is
saved as a standard LoRA adapter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.models.dtypes import get_adapter_dtype, get_wide_dtype
from fedpeft.models.layers import Layers, find_target_layers, replace
from fedpeft.models.task import FederatedModel
from fedpeft.peft.adapter import AdapterShape, State
from fedpeft.peft.low_rank import LowRank
from fedpeft.peft.method import PeftMethod
from fedpeft.peft.stacked_layers import ScaledLayer, StackedLayer, StackedWeight


def compute_frame(weight: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the frames B (out, k) and A (k, in) of a frozen `weight`.

    The largest entry of each vector is positive, so that all machines agree. If `width` k exceeds the rank, the missing
    vectors are 0.
    """
    left, _, right = torch.linalg.svd(weight.detach().double().cpu(), full_matrices=False)
    columns, rows = left[:, :width], right[:width]
    signs = columns.gather(0, columns.abs().argmax(0, keepdim=True)).sign()
    columns, rows = columns * signs, rows * signs.T
    missing = width - columns.shape[1]
    columns, rows = nn.functional.pad(columns, (0, missing)), nn.functional.pad(rows, (0, 0, 0, missing))
    return columns.to(weight.device, dtype), rows.to(weight.device, dtype)


class FramedLayer(nn.Module):
    """A frozen layer, its frames, and the trained matrix M (rows, k), which is 0 at first."""

    A: Tensor
    B: Tensor
    trained: ClassVar[str]
    """M's name as a layer."""

    def __init__(self, layer: nn.Linear, shape: tuple[int, int], dtype: torch.dtype) -> None:
        """Compute the frames of `layer` and create M of `shape` (rows, k) in `dtype`."""
        super().__init__()
        self.base_layer = layer
        columns, rows = compute_frame(layer.weight, shape[1], dtype)
        self.register_buffer("B", columns, persistent=False)
        self.register_buffer("A", rows, persistent=False)
        weight = nn.Linear(shape[1], shape[0], bias=False, device=columns.device, dtype=dtype)
        nn.init.zeros_(weight.weight)
        self.add_module(self.trained, weight)
        self.scale = 1.0

    def set_form(self, form: AdapterShape) -> None:
        """Set the client's scale."""
        self.scale = form.scale

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        middle: Tensor = self.get_submodule(self.trained).weight  # type: ignore[assignment]
        y: Tensor = self.base_layer(x)
        return y + self.apply_middle(x @ self.A.to(x.dtype).T, middle.to(x.dtype)) @ self.B.to(x.dtype).T

    @abstractmethod
    def apply_middle(self, seen: Tensor, middle: Tensor) -> Tensor:
        """Map the projections `seen` = A x (..., k) to the input of B (..., k), with the scale."""

    @abstractmethod
    def product(self, middle: Tensor) -> LowRank:
        """Return B f(M) A without the scale."""


class StackedFramedLayer(ScaledLayer):
    """A frozen layer, the frames that all clients share, and K clients' matrices M (K, rows, k)."""

    A: Tensor
    B: Tensor
    trained: ClassVar[str]

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], clients: int) -> None:
        """Compute the frames of `layer` and create the matrices M of K `clients`, each of `shape` (rows, k)."""
        weight: Tensor = layer.weight  # type: ignore[assignment]
        dtype = get_wide_dtype(weight.dtype)
        super().__init__(clients, dtype)
        self.base_layer = layer
        columns, rows = compute_frame(weight, shape[1], dtype)
        self.register_buffer("B", columns, persistent=False)
        self.register_buffer("A", rows, persistent=False)
        self.add_module(self.trained, StackedWeight(clients, shape, dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(K * b, T, in) to (K * b, T, out)."""
        middle: Tensor = self.get_submodule(self.trained).weight  # type: ignore[assignment]
        shown = self.apply_middle(self.split_by_client(x @ self.A.to(x.dtype).T), middle)
        y: Tensor = self.base_layer(x)
        return y + (shown @ self.B.to(x.dtype).T).view_as(y)

    @abstractmethod
    def apply_middle(self, seen: Tensor, middle: Tensor) -> Tensor:
        """Map each client's projections `seen` = A x (K, rows, k) to the input of B (K, rows, k), with its scale."""


class FramedMethod(PeftMethod, ABC):
    """A method with framed layers of the classes `layer` and `stacked`; the settings give their place and size."""

    batched: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    few_bits: ClassVar[bool] = False
    layer: ClassVar[type[FramedLayer]]
    stacked: ClassVar[type[StackedFramedLayer]]

    rank: int
    alpha: float
    targets: str | tuple[str, ...]
    layers: Layers

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Shape (rows, columns) of M."""

    @property
    def form(self) -> AdapterShape:
        """Rank and alpha."""
        return AdapterShape(self.rank, self.alpha)

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Wrap the target layers."""
        for path in find_target_layers(model.base, self.targets, self.layers):
            layer: Any = model.base.get_submodule(path)
            replace(model.base, path, self.layer(layer, self.shape, get_adapter_dtype(dtype)))

    def changes(self, model: FederatedModel, state: State) -> dict[str, LowRank]:
        """Return (alpha / r) B f(M) A of each layer, by module."""
        changes = {}
        for name, middle in state.items():
            if name.endswith(self.tensors):
                module = self.role(name)[1]
                layer = model.base.get_submodule(module)
                assert isinstance(layer, self.layer)
                changes[module] = layer.product(middle).scale(self.form.scale)
        return changes

    def stack(self, path: str, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int) -> StackedLayer:
        """Return the frozen layer with the matrices M of K clients."""
        return self.stacked(layer, shapes[self.tensors[0]], clients)

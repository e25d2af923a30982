"""Layers with a small trained matrix M between two fixed frames, which are made from the frozen weights.

    y = W0 x + B f(M) A x,   A (k, in) and B (out, k) fixed, with orthonormal rows and columns

B and A are the leading singular vectors of W0, as in LoRA-XS (Balazy et al., arXiv 2405.17604): known to everyone, so
that nothing travels for them. A method says what M is and what f is (`fedpeft.peft.methods.lora_sb`, `lora_gram`). The
result is saved as a standard LoRA adapter.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.models.layers import Layers, find_target_layers, replace
from fedpeft.models.task import FederatedModel, get_adapter_dtype, get_wide_dtype
from fedpeft.peft.adapter import AdapterShape, State
from fedpeft.peft.low_rank import LowRank
from fedpeft.peft.method import PeftMethod
from fedpeft.peft.stacked_layers import ScaledLayer, StackedLayer, StackedWeight


def compute_frame(weight: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """B (out, k) and A (k, in) of a frozen `weight`; a vector's largest entry is positive, what is missing is 0."""
    U, _, Vt = torch.linalg.svd(weight.detach().double().cpu(), full_matrices=False)
    B, A = U[:, :width], Vt[:width]
    signs = B.gather(0, B.abs().argmax(0, keepdim=True)).sign()
    B, A = B * signs, A * signs.T
    missing = width - B.shape[1]
    B, A = nn.functional.pad(B, (0, missing)), nn.functional.pad(A, (0, 0, 0, missing))
    return B.to(weight.device, dtype), A.to(weight.device, dtype)


class FramedLayer(nn.Module):
    """A frozen layer, its frames, and M (rows, k), at 0 at first."""

    A: Tensor
    B: Tensor
    trained: ClassVar[str]
    """M's name as a layer."""

    def __init__(self, layer: nn.Linear, shape: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self.base_layer = layer
        B, A = compute_frame(layer.weight, shape[1], dtype)
        self.register_buffer("B", B, persistent=False)
        self.register_buffer("A", A, persistent=False)
        weight = nn.Linear(shape[1], shape[0], bias=False, device=B.device, dtype=dtype)
        nn.init.zeros_(weight.weight)
        self.add_module(self.trained, weight)
        self.scale = 1.0

    def set_form(self, form: AdapterShape) -> None:
        """The client's scale."""
        self.scale = form.scale

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        M: Tensor = self.get_submodule(self.trained).weight  # type: ignore[assignment]
        y: Tensor = self.base_layer(x)
        return y + self.apply_middle(x @ self.A.to(x.dtype).T, M.to(x.dtype)) @ self.B.to(x.dtype).T

    @abstractmethod
    def apply_middle(self, seen: Tensor, M: Tensor) -> Tensor:
        """What is `seen` through A, (..., k), as it leaves for B: (..., k), times the scale."""

    @abstractmethod
    def product(self, M: Tensor) -> LowRank:
        """B f(M) A, without the scale."""


class StackedFramedLayer(ScaledLayer):
    """A frozen layer, the frames that all clients share, and K clients' M (K, rows, k)."""

    A: Tensor
    B: Tensor
    trained: ClassVar[str]

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], clients: int) -> None:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        dtype = get_wide_dtype(weight.dtype)
        super().__init__(clients, dtype)
        self.base_layer = layer
        B, A = compute_frame(weight, shape[1], dtype)
        self.register_buffer("B", B, persistent=False)
        self.register_buffer("A", A, persistent=False)
        self.add_module(self.trained, StackedWeight(clients, shape, dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(K * b, T, in) to (K * b, T, out)."""
        M: Tensor = self.get_submodule(self.trained).weight  # type: ignore[assignment]
        shown = self.apply_middle(self.split_by_client(x @ self.A.to(x.dtype).T), M)
        y: Tensor = self.base_layer(x)
        return y + (shown @ self.B.to(x.dtype).T).view_as(y)

    @abstractmethod
    def apply_middle(self, seen: Tensor, M: Tensor) -> Tensor:
        """What each client sees through A, (K, rows, k), as it leaves for B: (K, rows, k), times its scale."""


class FramedMethod(PeftMethod):
    """A method whose layers are framed; `layer` and `stacked` say how, and the part's settings where and how large."""

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
        """Rows and columns of M."""

    @property
    def form(self) -> AdapterShape:
        """Rank and alpha."""
        return AdapterShape(self.rank, self.alpha)

    def config(self, base: nn.Module) -> Any:
        """None: the `peft` library has no such method; the result is saved as LoRA."""
        return None

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Wrap the target layers."""
        for path in find_target_layers(model.base, self.targets, self.layers):
            layer: Any = model.base.get_submodule(path)
            replace(model.base, path, self.layer(layer, self.shape, get_adapter_dtype(dtype)))

    def changes(self, model: FederatedModel, state: State) -> dict[str, LowRank]:
        """(alpha / r) B f(M) A of each layer."""
        found = {}
        for name, M in state.items():
            if name.endswith(self.tensors):
                module = self.role(name)[1]
                layer = model.base.get_submodule(module)
                assert isinstance(layer, self.layer)
                found[module] = layer.product(M).scale(self.form.scale)
        return found

    def stack(self, path: str, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int) -> StackedLayer:
        """The frozen layer with K matrices M."""
        return self.stacked(layer, shapes[self.tensors[0]], clients)

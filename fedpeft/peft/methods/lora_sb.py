"""LoRA-SB: a small square matrix trains between two frozen factors (Ponkshe et al., arXiv 2411.19557).

    y = W0 x + (alpha / r) B R A x,   A (r, in) and B (out, r) fixed, R (r, r) trained, R = 0 at first

B and A are the leading singular vectors of W0, as in LoRA-XS (Balazy et al., arXiv 2405.17604). Deviation: LoRA-SB
takes those of a gradient, which costs privacy where the data are private; the weights are known to everyone. The
result is saved as a standard LoRA adapter with the factors B R and A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.models.layers import replace, target_layers
from fedpeft.models.task import FederatedModel, adapter_dtype
from fedpeft.parts import setting
from fedpeft.peft.adapter import ClientForm, Role, State
from fedpeft.peft.low_rank import LowRank
from fedpeft.peft.method import PeftMethod
from fedpeft.peft.stacked_layers import StackedLayer, StackedWeight

SUFFIX = ".lora_R.weight"


def frame(weight: Tensor, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The fixed factors B (out, r) and A (r, in) for a frozen `weight`; a vector's largest entry is positive."""
    U, _, Vt = torch.linalg.svd(weight.detach().double().cpu(), full_matrices=False)
    B, A = U[:, :rank], Vt[:rank]
    signs = B.gather(0, B.abs().argmax(0, keepdim=True)).sign()
    B, A = B * signs, A * signs.T
    missing = rank - B.shape[1]
    B, A = nn.functional.pad(B, (0, missing)), nn.functional.pad(A, (0, 0, 0, missing))
    return B.to(weight.device, dtype), A.to(weight.device, dtype)


class SquareLora(nn.Module):
    """A frozen layer, the fixed factors, and R."""

    A: Tensor
    B: Tensor

    def __init__(self, layer: nn.Linear, rank: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.base_layer = layer
        B, A = frame(layer.weight, rank, dtype)
        self.register_buffer("B", B, persistent=False)
        self.register_buffer("A", A, persistent=False)
        self.lora_R = nn.Linear(rank, rank, bias=False, device=B.device, dtype=dtype)
        nn.init.zeros_(self.lora_R.weight)
        self.scale = 1.0

    def set_form(self, form: ClientForm) -> None:
        """The client's scale."""
        self.scale = form.scale

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        R = self.lora_R.weight.to(x.dtype) * self.scale
        y: Tensor = self.base_layer(x) + x @ self.A.to(x.dtype).T @ R.T @ self.B.to(x.dtype).T
        return y


class StackedSquareLora(StackedLayer):
    """A frozen layer, the fixed factors that all clients share, and K clients' R (K, r, r)."""

    A: Tensor
    B: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], clients: int) -> None:
        super().__init__(clients)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.base_layer = layer
        B, A = frame(weight, shape[0], dtype)
        self.register_buffer("B", B, persistent=False)
        self.register_buffer("A", A, persistent=False)
        self.lora_R = StackedWeight(clients, shape, dtype)
        self.register_buffer("scales", torch.ones(clients, 1, 1, dtype=dtype), persistent=False)

    def set_forms(self, forms: Sequence[ClientForm | None]) -> None:
        """The clients' own scales."""
        for k, form in enumerate(forms):
            self.scales[k] = form.scale if form is not None else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """(K * b, T, in) to (K * b, T, out)."""
        R = self.of_active(self.lora_R.weight * self.scales, x)
        hidden = torch.bmm(self.per_client(x @ self.A.to(x.dtype).T), R.transpose(1, 2))
        y: Tensor = self.base_layer(x)
        return y + (hidden @ self.B.to(x.dtype).T).view_as(y)


@dataclass(frozen=True)
class LoraSB(PeftMethod):
    """A square matrix between fixed factors."""

    rank: int = setting(16, "rank of the factors; rank^2 numbers per layer are trained", low=1, high=1024)
    alpha: float = setting(16.0, "numerator of the scale alpha / rank", above=0)
    targets: str | tuple[str, ...] = setting("all", "linear layers by the end of their name, or all")
    layers: int = setting(2, "adapt the linear layers of this many uppermost blocks; 0: of all blocks", low=0)

    batched: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False
    mixed_sizes: ClassVar[bool] = True
    merges: ClassVar[bool] = True
    few_bits: ClassVar[bool] = False
    tensors: ClassVar[tuple[str, ...]] = ("lora_R.weight",)

    @property
    def form(self) -> ClientForm:
        """Rank and alpha."""
        return ClientForm(self.rank, self.alpha)

    def sized(self, form: ClientForm) -> dict[str, Any]:
        """Rank and alpha."""
        return {"rank": form.rank, "alpha": form.alpha}

    def config(self, base: nn.Module) -> Any:
        """None: the `peft` library has no such method; the result is saved as LoRA."""
        return None

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Wrap the target layers."""
        for path in target_layers(model.base, self.targets, self.layers):
            layer: Any = model.base.get_submodule(path)
            replace(model.base, path, SquareLora(layer, self.rank, adapter_dtype(dtype)))

    def role(self, name: str) -> tuple[Role, str]:
        """R is a plain parameter of its layer."""
        if name.endswith(SUFFIX):
            return "plain", name.removesuffix(SUFFIX)
        return super().role(name)

    def changes(self, model: FederatedModel, state: State) -> dict[str, LowRank]:
        """(alpha / r) B R and A of each layer."""
        found = {}
        for name, R in state.items():
            if name.endswith(SUFFIX):
                module = name.removesuffix(SUFFIX)
                layer = model.base.get_submodule(module)
                assert isinstance(layer, SquareLora)
                found[module] = LowRank(layer.B @ R.to(layer.B.dtype) * self.form.scale, layer.A)
        return found

    def stack(self, path: str, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int) -> StackedLayer:
        """The frozen layer with K matrices R."""
        return StackedSquareLora(layer, shapes["lora_R.weight"], clients)


part = LoraSB

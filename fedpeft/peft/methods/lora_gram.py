"""Gram LoRA: one small matrix trains, and its Gram matrix lies between two frozen frames (FLoRG, Meng, Tang, Wong,
arXiv 2602.17095).

    y = W0 x + (alpha / r) L G^T G R x,   L (out, k) and R (k, in) fixed, with orthonormal columns and rows; G (r, k)

r k numbers per layer are trained and travel. The update is quadratic in G: G = 0 has no gradient, so G starts small
and random and the model a little beside the base. In the frames of L and R an update is positive semi-definite, which
is a limit: for each pair of their vectors u_i^T dW v_i >= 0.

The paper asks for fixed semi-orthogonal frames. Ours are the k leading singular vectors of W0, known to everyone (as
in `lora_sb`), so that nothing travels for them. The result is saved as a standard LoRA adapter with the factors L G^T
and G R.
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
from fedpeft.peft.method import PeftMethod, WeightChanges, drawn
from fedpeft.peft.stacked_layers import StackedLayer, StackedWeight

from .lora_sb import frame

SUFFIX = ".lora_G.weight"
START = 0.02
"""G's entries start uniform in +- this."""


class GramLora(nn.Module):
    """A frozen layer, the fixed frames, and G."""

    L: Tensor
    R: Tensor

    def __init__(self, layer: nn.Linear, rank: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.base_layer = layer
        L, R = frame(layer.weight, width, dtype)
        self.register_buffer("L", L, persistent=False)
        self.register_buffer("R", R, persistent=False)
        self.lora_G = nn.Linear(width, rank, bias=False, device=L.device, dtype=dtype)
        self.scale = 1.0

    def set_form(self, form: ClientForm) -> None:
        """The client's scale."""
        self.scale = form.scale

    def product(self, G: Tensor) -> LowRank:
        """L G^T and G R, without the scale."""
        G = G.to(self.L.dtype)
        return LowRank(self.L @ G.T, G @ self.R)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        G = self.lora_G.weight.to(x.dtype)
        hidden = x @ self.R.to(x.dtype).T @ G.T
        y: Tensor = self.base_layer(x) + hidden @ (G * self.scale) @ self.L.to(x.dtype).T
        return y


class StackedGramLora(StackedLayer):
    """A frozen layer, the fixed frames that all clients share, and K clients' G (K, r, k)."""

    L: Tensor
    R: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], clients: int) -> None:
        super().__init__(clients)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.base_layer = layer
        L, R = frame(weight, shape[1], dtype)
        self.register_buffer("L", L, persistent=False)
        self.register_buffer("R", R, persistent=False)
        self.lora_G = StackedWeight(clients, shape, dtype)
        self.register_buffer("scales", torch.ones(clients, 1, 1, dtype=dtype), persistent=False)

    def set_forms(self, forms: Sequence[ClientForm | None]) -> None:
        """The clients' own scales."""
        for k, form in enumerate(forms):
            self.scales[k] = form.scale if form is not None else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """(K * b, T, in) to (K * b, T, out)."""
        G = self.of_active(self.lora_G.weight, x)
        seen = torch.bmm(self.per_client(x @ self.R.to(x.dtype).T), G.transpose(1, 2))
        shown = torch.bmm(seen, G * self.of_active(self.scales, x))
        y: Tensor = self.base_layer(x)
        return y + (shown @ self.L.to(x.dtype).T).view_as(y)


@dataclass(frozen=True)
class LoraGram(PeftMethod):
    """The Gram matrix of a small matrix between fixed frames."""

    rank: int = setting(8, "rows of G: the rank of the update", low=1, high=1024)
    width: int = setting(64, "k, columns of G: how many singular vectors of the frozen weights it sees", low=1)
    alpha: float = setting(32.0, "numerator of the scale alpha / rank", above=0)
    targets: str | tuple[str, ...] = setting("all", "linear layers by the end of their name, or all")
    layers: int = setting(2, "adapt the linear layers of this many uppermost blocks; 0: of all blocks", low=0)

    strategies: ClassVar[tuple[str, ...]] = ("florg",)
    batched: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    few_bits: ClassVar[bool] = False
    tensors: ClassVar[tuple[str, ...]] = ("lora_G.weight",)

    @property
    def form(self) -> ClientForm:
        """Rank and alpha."""
        return ClientForm(self.rank, self.alpha)

    def config(self, base: nn.Module) -> Any:
        """None: the `peft` library has no such method; the result is saved as LoRA."""
        return None

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Wrap the target layers."""
        for path in target_layers(model.base, self.targets, self.layers):
            layer: Any = model.base.get_submodule(path)
            replace(model.base, path, GramLora(layer, self.rank, self.width, adapter_dtype(dtype)))

    def role(self, name: str) -> tuple[Role, str]:
        """G is a plain parameter of its layer."""
        if name.endswith(SUFFIX):
            return "plain", name.removesuffix(SUFFIX)
        return super().role(name)

    def start(self, model: FederatedModel, seed: int) -> State:
        """G small and random."""
        state = super().start(model, seed)
        for name in state:
            if name.endswith(SUFFIX):
                drawn(state, name, seed, START)
        return state

    def changes(self, model: FederatedModel, state: State) -> dict[str, LowRank]:
        """(alpha / r) L G^T and G R of each layer."""
        found = {}
        for name, G in state.items():
            if name.endswith(SUFFIX):
                module = name.removesuffix(SUFFIX)
                layer = model.base.get_submodule(module)
                assert isinstance(layer, GramLora)
                found[module] = layer.product(G).scaled(self.form.scale)
        return found

    def weight_changes(self, model: FederatedModel) -> WeightChanges:
        """(alpha / r) L G^T G R."""

        def changes(state: State, form: ClientForm | None) -> dict[str, Tensor]:
            return {module: product.dense() for module, product in self.changes(model, state).items()}

        return changes

    def stack(self, path: str, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int) -> StackedLayer:
        """The frozen layer with K matrices G."""
        return StackedGramLora(layer, shapes["lora_G.weight"], clients)


part = LoraGram

"""LoRA: low-rank adaptation (Hu et al., arXiv 2106.09685).

    y = W0 x + (alpha / r) B A x,   A ~ U(-1/sqrt(in), 1/sqrt(in)) of shape (r, in),   B = 0 of shape (out, r)

Use it first: it is the default for texts, and every strategy for factors takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.machine import seeds
from fedpeft.models.dtypes import get_wide_dtype
from fedpeft.models.kernels import FrozenLinear
from fedpeft.models.layers import declare_layers, find_target_layers, get_innermost
from fedpeft.models.quantized_base import get_weight_dtype
from fedpeft.models.task import FederatedModel, find_trainable
from fedpeft.parts import setting
from fedpeft.peft.adapter import AdapterShape, Role, State
from fedpeft.peft.method import PeftMethod, PrivacyRoute
from fedpeft.peft.stacked_layers import ScaledLayer, StackedLayer, StackedWeight
from fedpeft.peft.stacked_products import Factors, add_low_rank, split_evenly


class StackedLora(ScaledLayer):
    """A frozen layer plus K clients' factors: A (K, r, in), B (K, out, r), each client with its own scale."""

    def __init__(self, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int, dropout: float) -> None:
        """Create zero factors for K `clients` beside `layer`; `shapes` are those of one client's factors."""
        dtype = get_wide_dtype(get_weight_dtype(get_innermost(layer)))
        super().__init__(clients, dtype)
        self.base_layer = layer
        self.lora_A = StackedWeight(clients, shapes["lora_A.weight"], dtype)
        self.lora_B = StackedWeight(clients, shapes["lora_B.weight"], dtype)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    @property
    def packs(self) -> bool:
        """Whether the layer accepts input without padding; dropout does not, as its masks are those of padded input."""
        return isinstance(self.dropout, nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        """(K * b, T, in) to (K * b, T, out), or packed (1, N, in) to (1, N, out)."""
        layer, factors = self.base_layer, Factors(self.lora_A.weight, self.lora_B.weight, self.scales)
        packing = None if self.packed is None else self.packed.packing
        groups = split_evenly(self.active, x) if packing is None else packing.groups
        if isinstance(layer, FrozenLinear) and isinstance(self.dropout, nn.Identity):
            return add_low_rank(None, x, factors, groups, layer)
        return add_low_rank(layer(x), self.dropout(x), factors, groups)


@dataclass(frozen=True)
class Lora(PeftMethod):
    """Low-rank factors beside frozen linear layers."""

    rank: int = setting(8, "rank of the factors", low=1, high=1024)
    alpha: float = setting(32.0, "numerator of the scale alpha / rank", above=0)
    targets: str | tuple[str, ...] = setting("all", "linear layers by the end of their name, or all")
    layers: int | tuple[int, ...] | None = declare_layers()
    dropout: float = setting(0.0, "dropout on the input of A", low=0, below=1)

    batched: ClassVar[bool] = True
    batched_in_few_bits: ClassVar[bool] = True
    mixed_sizes: ClassVar[bool] = True
    residual: ClassVar[bool] = True
    merges: ClassVar[bool] = True
    composes: ClassVar[bool] = True
    tensors: ClassVar[tuple[str, ...]] = ("lora_A.weight", "lora_B.weight")
    roles: ClassVar[Mapping[str, Role]] = {"lora_A.weight": "lora_A", "lora_B.weight": "lora_B"}
    privacy: ClassVar[PrivacyRoute] = "hooks"

    @property
    def form(self) -> AdapterShape:
        """Rank and alpha."""
        return AdapterShape(self.rank, self.alpha)

    def config(self, base: nn.Module) -> Any:
        """Return a `peft.LoraConfig` that names every adapted layer in full."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=find_target_layers(base, self.targets, self.layers),
            bias="none",
            **self.variant(),
        )

    def variant(self) -> dict[str, Any]:
        """Return further settings of the `peft.LoraConfig`; variants override this."""
        return {}

    def start(self, model: FederatedModel, seed: int) -> State:
        """Return A uniform in +-1/sqrt(in), and B zero."""
        state = super().start(model, seed)
        for index, name in enumerate(find_trainable(model)):
            if self.role(name)[0] == "lora_A":
                shape = state[name].shape
                bound = shape[1] ** -0.5
                draw = torch.rand(shape, generator=seeds.create_torch_generator(seed, "lora_A", index))
                state[name] = (2 * draw - 1) * bound
            elif self.role(name)[0] == "lora_B":
                state[name] = torch.zeros_like(state[name])
        return state

    def stack(self, path: str, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int) -> StackedLayer:
        """Return the frozen layer with the factors of K clients."""
        return StackedLora(layer, shapes, clients, self.dropout)


part = Lora

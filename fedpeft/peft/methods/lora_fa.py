"""LoRA-FA: LoRA with a frozen, drawn A; only B is trained and sent (Zhang et al., arXiv 2308.03303).

    y = W0 x + (alpha / r) B A x,   A ~ U(-1/sqrt(in), 1/sqrt(in)) fixed, B = 0 at first

With one A for all clients the update is linear in B, so the plain mean is exact, at half of LoRA's bytes. The strategy
ffa_lora does the same to LoRA. Here A is not a parameter, so server optimizers and privacy see B alone.

Use it if the mean must be exact at half of LoRA's bytes, whatever the strategy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.machine import seeds
from fedpeft.models.dtypes import get_wide_dtype
from fedpeft.models.layers import get_innermost
from fedpeft.models.task import FederatedModel, find_trainable
from fedpeft.parts import setting
from fedpeft.peft.adapter import Role, State
from fedpeft.peft.methods.lora import Lora
from fedpeft.peft.stacked_layers import ScaledLayer, StackedLayer, StackedWeight


def draw_fixed_factor(seed: int, path: str, rank: int, in_features: int) -> Tensor:
    """Draw A (rank, in) of the layer at `path` in fp32."""
    draw: Tensor = torch.rand(rank, in_features, generator=seeds.create_torch_generator(seed, f"lora_fa {path}", 0))
    return (2 * draw - 1) / math.sqrt(in_features)


class StackedLoraFA(ScaledLayer):
    """A frozen layer, A (r, in) that all clients share, and K clients' B (K, out, r), each with its own scale."""

    A: Tensor

    def __init__(self, layer: nn.Module, lora_a: Tensor, shape: tuple[int, ...], clients: int, dropout: float) -> None:
        """Hold the shared `lora_a` and create zero factors B of `shape` (out, r) for K `clients`."""
        super().__init__(clients, lora_a.dtype)
        self.base_layer = layer
        self.register_buffer("A", lora_a, persistent=False)
        self.lora_B = StackedWeight(clients, shape, lora_a.dtype)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(K * b, T, in) to (K * b, T, out)."""
        y = self.base_layer(x)
        lora_b = self.select_active(self.lora_B.weight * self.scales, x)
        hidden = self.split_by_client(self.dropout(x) @ self.A.to(x.dtype).T)
        return torch.baddbmm(self.split_by_client(y), hidden, lora_b.transpose(1, 2)).view_as(y)


@dataclass(frozen=True)
class LoraFA(Lora):
    """One trained factor beside a frozen one."""

    factor_seed: int = setting(0, "seed of the frozen A; not the run's seed, since it is part of the model", low=0)

    mixed_sizes: ClassVar[bool] = False
    residual: ClassVar[bool] = False
    batched_in_few_bits: ClassVar[bool] = False  # not tested
    tensors: ClassVar[tuple[str, ...]] = ("lora_B.weight",)
    roles: ClassVar[Mapping[str, Role]] = {}  # B is a plain parameter of its layer

    def settle(self, base: nn.Module) -> None:
        """Set and freeze A in every LoRA layer of `base`."""
        from peft.tuners.lora import LoraLayer

        from fedpeft.models.task import get_canonical_name

        for name, layer in base.named_modules():
            if isinstance(layer, LoraLayer):
                weight: Any = layer.lora_A["default"].weight
                path = get_canonical_name(name + ".").removesuffix(".")
                with torch.no_grad():
                    weight.copy_(draw_fixed_factor(self.factor_seed, path, *weight.shape))
                weight.requires_grad_(False)

    def start(self, model: FederatedModel, seed: int) -> State:
        """Return B as zero."""
        return {
            name: torch.zeros(p.shape) if name.endswith(".lora_B.weight") else p.detach().float().clone()
            for name, p in find_trainable(model).items()
        }

    def stack(self, path: str, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int) -> StackedLayer:
        """Return the frozen layer with the factors B of K clients."""
        module: Any = get_innermost(layer)
        shape = shapes["lora_B.weight"]
        lora_a = draw_fixed_factor(self.factor_seed, path, shape[1], module.in_features)
        dtype = get_wide_dtype(module.weight.dtype)
        return StackedLoraFA(layer, lora_a.to(module.weight.device, dtype), shape, clients, self.dropout)


part = LoraFA

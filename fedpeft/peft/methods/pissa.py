"""PiSSA: LoRA whose factors start as the leading part of the frozen weight (Meng et al., arXiv 2404.02948).

    y = (W0 - s B_0 A_0) x + s B A x,   s B_0 A_0 = U_r S_r V_r^T of W0 = U S V^T
    B_0 = U_r (S_r / s)^1/2,   A_0 = (S_r / s)^1/2 V_r^T

At first the model is the base model, and both factors have gradients from the first step on. The remainder W0 - s B_0
A_0 stays in the base. It is computed as W0 x - s B_0 (A_0 x), and W0 does not change:

- nothing is rounded to the base's precision;
- a reference model with its adapters off is the true base;
- nothing travels for the remainder, because every client computes A_0 and B_0 from its own W0.

A step costs one low-rank product more than LoRA.

The result is saved as a plain LoRA adapter of W0 with rank 2 r: [s B, -s B_0] and [A; A_0]. These are refused:

- clients of another rank, because their leading ranks would not add up to W0 with this remainder;
- rules that may drop ranks (`flexlora` with an energy, `rank_budget`, `hetlora`), thin factors out or make new ones:
  the part of W0 that such a rank holds would be gone;
- rules that put a residual into the base, and bases in few bits.

A cut of the mean product to rank r, as in `fedask` and the robust rules, costs next to nothing. All clients start from
the same B_0 and A_0, so the mean of B A has rank r up to second order in the changes.

Read: the option "pissa" of the `peft` library, not the paper. Deviation: the sign of each singular vector is fixed,
so that all machines agree.

Use it if few rounds are affordable: both factors have gradients from the first step on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.models.dtypes import get_wide_dtype
from fedpeft.models.layers import get_innermost
from fedpeft.models.task import FederatedModel, get_canonical_name
from fedpeft.peft.adapter import JointMeaning, State
from fedpeft.peft.framed_layers import compute_frame
from fedpeft.peft.low_rank import LowRank
from fedpeft.peft.method import PeftMethod
from fedpeft.peft.methods.lora import Lora, StackedLora
from fedpeft.peft.stacked_layers import StackedLayer


def compute_leading_factors(weight: Tensor, rank: int, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return B_0 (out, r) and A_0 (r, in) of a frozen `weight` (out, in); ranks that it lacks are 0."""
    columns, rows = compute_frame(weight, rank, torch.float64)
    sizes = ((columns.T @ weight.detach().double()) * rows).sum(1).clamp_min(0)
    root = (sizes / scale).sqrt()
    return (columns * root).to(dtype), (root[:, None] * rows).to(dtype)


class Remainder(nn.Module):
    """A frozen layer without the leading part of its weight: W0 x + bias - s B_0 A_0 x."""

    A: Tensor
    B: Tensor

    def __init__(self, layer: nn.Module, lora_b: Tensor, lora_a: Tensor, scale: float) -> None:
        """Hold s B_0 and A_0 = `lora_a` beside `layer`."""
        super().__init__()
        self.base_layer = layer
        self.register_buffer("B", lora_b * scale, persistent=False)
        self.register_buffer("A", lora_a, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        y: Tensor = self.base_layer(x)
        return y - ((x.to(self.A.dtype) @ self.A.T) @ self.B.T).to(y.dtype)


class StackedPissa(StackedLora):
    """A frozen layer without its leading part, plus K clients' factors."""

    A: Tensor
    B: Tensor

    def __init__(
        self, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int, dropout: float, scale: float
    ) -> None:
        """Compute the leading factors of `layer` and create zero factors for K `clients`."""
        super().__init__(layer, shapes, clients, dropout)
        inner: Any = get_innermost(layer)
        leading_b, leading_a = compute_leading_factors(
            inner.weight, shapes["lora_A.weight"][0], scale, self.lora_A.weight.dtype
        )
        self.register_buffer("B", leading_b * scale, persistent=False)
        self.register_buffer("A", leading_a, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(K * b, T, in) to (K * b, T, out), or packed (1, N, in) to (1, N, out)."""
        y = super().forward(x)
        return y - ((x.to(self.A.dtype) @ self.A.T) @ self.B.T).to(y.dtype)


@dataclass(frozen=True)
class Pissa(Lora):
    """Low-rank factors that start as the leading part of the frozen weights."""

    in_peft: ClassVar[bool] = False
    joint_meaning: ClassVar[JointMeaning] = "all ranks"
    mixed_sizes: ClassVar[bool] = False
    residual: ClassVar[bool] = False
    composes: ClassVar[bool] = False
    few_bits: ClassVar[bool] = False
    batched_in_few_bits: ClassVar[bool] = False

    def settle(self, base: nn.Module) -> None:
        """Set A and B of every LoRA layer of `base` to its leading part, and take that out of the frozen layer."""
        from peft.tuners.lora import LoraLayer

        for layer in [module for module in base.modules() if isinstance(module, LoraLayer)]:
            frozen: Any = layer.base_layer
            lora_a: Any = layer.lora_A["default"].weight
            lora_b: Any = layer.lora_B["default"].weight
            leading_b, leading_a = compute_leading_factors(
                frozen.weight, self.rank, self.form.scale, get_wide_dtype(frozen.weight.dtype)
            )
            with torch.no_grad():
                lora_a.copy_(leading_a)
                lora_b.copy_(leading_b)
            layer.base_layer = Remainder(frozen, leading_b, leading_a, self.form.scale)

    def start(self, model: FederatedModel, seed: int) -> State:
        """Return the attached model's own values."""
        return PeftMethod.start(self, model, seed)

    def changes(self, model: FederatedModel, state: State) -> dict[str, LowRank]:
        """Return s B A - s B_0 A_0 of each layer, of width 2 r."""
        products = {}
        for name, layer in model.base.named_modules():
            if isinstance(layer, Remainder):
                module = get_canonical_name(f"{name}.").removesuffix(".").removesuffix(".base_layer")
                lora_a, lora_b = (state[f"{module}.lora_{factor}.weight"] for factor in "AB")
                left = torch.cat([lora_b * self.form.scale, -layer.B.to(lora_b)], dim=1)
                products[module] = LowRank(left, torch.cat([lora_a, layer.A.to(lora_a)]))
        return products

    def stack(self, path: str, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int) -> StackedLayer:
        """Return the frozen layer without its leading part, with K pairs of factors."""
        return StackedPissa(layer, shapes, clients, self.dropout, self.form.scale)


part = Pissa

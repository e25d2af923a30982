"""Several LoRAs beside a frozen layer, the own one of a client's group and those of others, chosen at each token (the
layer of FedLEASE: arXiv 2509.15087, section 4).

    y = W0 x + s sum_{p in top M of w(x)} w_p(x) B_e(p) A_e(p) x,   w(x) = softmax(G x + b) in R^(2M - 1)
    s = alpha / rank;   e(p) = own for the first M slots, and another expert for each of the M - 1 that are left

There are more slots of the own expert than can be left out, so it always takes part, and how much is up to the router:
the weights that are chosen are not made to sum to 1. With M = 1 this is LoRA.

The factors of all other experts lie side by side, in others_A ((experts - 1) rank, in) and others_B. A rule may leave
some of the `experts` out that there is room for: slots with a bias below `SHUT` / 2 are shut, and those left open say
what M is. At the start all are open, and experts start as LoRA does, with A of their own and B = 0. For --strategy
fedlease, which fills in the others and shuts slots; other strategies average all tensors, as if they were one adapter.

Deviations: the paper's router has no b. Each layer has a router, which reads what the layer does.

Use it with `fedlease`, the strategy that it is made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.models.layers import declare_layers, find_target_layers, get_innermost, replace
from fedpeft.models.task import FederatedModel, get_adapter_dtype, get_wide_dtype
from fedpeft.parts import setting
from fedpeft.peft.adapter import State
from fedpeft.peft.method import PeftMethod, draw_uniform
from fedpeft.peft.stacked_layers import NamedWeights, StackedLayer

NAMES = ("own_A", "own_B", "others_A", "others_B", "gate", "bias")

SHUT = -100.0
"""Bias of a slot that leads to no expert; no training takes one so far."""


def number_slots(experts: int) -> Tensor:
    """Which expert each slot leads to, counted from the own one, 0: its slots by how many experts they need beside it.

    Slot p is open with M experts where this is below M.
    """
    return torch.cat([torch.arange(experts), torch.arange(1, experts)])


class ExpertLoras(NamedWeights):
    """A frozen layer, and the experts and routers of K clients, (K, ...), or of one client alone."""

    def __init__(self, layer: Any, rank: int, experts: int, scale: float, dtype: torch.dtype, clients: int = 0) -> None:
        into, out, others, slots = layer.in_features, layer.out_features, (experts - 1) * rank, 2 * experts - 1
        shapes = [(rank, into), (out, rank), (others, into), (out, others), (slots, into), (slots,)]
        super().__init__(layer, dict(zip(NAMES, shapes, strict=True)), dtype, clients)
        self.scale, self.rank, self.experts = scale, rank, experts

    def compute_shares(self, seen: Tensor) -> Tensor:
        """w of the chosen slots, 0 of the others: (K, rows, in) to (K, rows, slots)."""
        bias = self.stack("bias", seen).unsqueeze(1)  # (K, 1, slots)
        shut = bias < SHUT / 2
        count = (~shut[..., : self.experts]).sum(-1, keepdim=True)  # M
        logits = (seen @ self.stack("gate", seen).mT + bias).masked_fill(shut, -torch.inf)
        found = logits.softmax(-1)
        place = found.sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
        return found * (place < count)

    def forward(self, x: Tensor) -> Tensor:
        """(K * b, T, in) to (K * b, T, out)."""
        y: Tensor = self.base_layer(x)
        seen = self.split_by_client(x)
        shares = self.compute_shares(seen)
        own = shares[..., : self.experts].sum(-1, keepdim=True)
        others = shares[..., self.experts :].repeat_interleave(self.rank, -1)
        mixed = own * (seen @ self.stack("own_A", x).mT @ self.stack("own_B", x).mT)
        mixed = mixed + (others * (seen @ self.stack("others_A", x).mT)) @ self.stack("others_B", x).mT
        return y + (self.scale * mixed).reshape(y.shape)


@dataclass(frozen=True)
class ExpertLora(PeftMethod):
    """LoRA experts, the own one and those of other groups, chosen by a router."""

    rank: int = setting(8, "of each expert", low=1, high=1024)
    experts: int = setting(4, "that there is room for, the own one included", low=2, high=64)
    alpha: float = setting(32.0, "the scale is alpha / rank", above=0)
    targets: str | tuple[str, ...] = setting("all", "linear layers by the end of their name, or all")
    layers: int | tuple[int, ...] | None = declare_layers()

    batched: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False
    tensors: ClassVar[tuple[str, ...]] = tuple(f"{name}.weight" for name in NAMES)

    def config(self, base: nn.Module) -> Any:
        """None: the `peft` library has no such method."""
        return None

    def _create_layer(self, layer: Any, dtype: torch.dtype, clients: int = 0) -> ExpertLoras:
        return ExpertLoras(layer, self.rank, self.experts, self.alpha / self.rank, dtype, clients)

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Wrap the target layers."""
        for path in find_target_layers(model.base, self.targets, self.layers):
            replace(model.base, path, self._create_layer(model.base.get_submodule(path), get_adapter_dtype(dtype)))

    def start(self, model: FederatedModel, seed: int) -> State:
        """A and the router uniform in +-1/sqrt(in), the experts' A as LoRA's; everything else zero."""
        state = super().start(model, seed)
        for name in state:
            if name.endswith(("own_A.weight", "others_A.weight", "gate.weight")):
                draw_uniform(state, name, seed, state[name].shape[1] ** -0.5)
        return state

    def stack(self, path: str, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int) -> StackedLayer:
        """The frozen layer with K clients' experts."""
        weight: Any = get_innermost(layer).weight
        return self._create_layer(layer, get_wide_dtype(weight.dtype), clients)


part = ExpertLora

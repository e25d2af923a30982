"""Several LoRAs beside a frozen layer, one of the client's group and those of other groups, chosen at each token.

    y = W0 x + s sum_{p in top M of w(x)} w_p(x) B_e(p) A_e(p) x,   w(x) = softmax(G x + b) in R^(2M - 1)
    s = alpha / rank;   e(p) = own for the first M slots, and another expert for each of the M - 1 that are left

This is the layer of FedLEASE (arXiv 2509.15087, section 4). The own expert has more slots than can be left out, so it
always takes part, with a weight that the router chooses. The weights of the chosen slots do not sum to 1. With M = 1
this is LoRA.

The factors of all other experts lie side by side, in others_A ((experts - 1) rank, in) and others_B. A rule may use
fewer experts than `experts`, the number that there is room for. Slots with a bias below `SHUT` / 2 are shut, and the
number of open slots determines M. At the start all slots are open, and experts start as LoRA does, with different A and
B = 0. The strategy fedlease fills in the others and shuts slots. Other strategies average all tensors as one adapter.

Deviations. The paper's router does not have b. Each layer has a router, which reads the layer's input.

Use it with `fedlease`, the strategy that it is made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.models.dtypes import get_adapter_dtype, get_wide_dtype
from fedpeft.models.layers import declare_layers, find_target_layers, get_innermost, replace
from fedpeft.models.task import FederatedModel
from fedpeft.parts import setting
from fedpeft.peft.adapter import State
from fedpeft.peft.method import PeftMethod, draw_uniform
from fedpeft.peft.stacked_layers import NamedWeights, StackedLayer

NAMES = ("own_A", "own_B", "others_A", "others_B", "gate", "bias")

SHUT = -100.0
"""Bias of a slot without an expert; training never reaches such a value."""


def number_slots(experts: int) -> Tensor:
    """Return the expert of each slot, counted from the own one, 0.

    Slot p is open with M experts if its entry is below M.
    """
    return torch.cat([torch.arange(experts), torch.arange(1, experts)])


class ExpertLoras(NamedWeights):
    """A frozen layer with the experts and routers of K clients, (K, ...), or of one client."""

    def __init__(self, layer: Any, rank: int, experts: int, scale: float, dtype: torch.dtype, clients: int = 0) -> None:
        """Create the factors, the router and its bias beside `layer`; `clients` 0 stands for one client."""
        into, out, others, slots = layer.in_features, layer.out_features, (experts - 1) * rank, 2 * experts - 1
        shapes = [(rank, into), (out, rank), (others, into), (out, others), (slots, into), (slots,)]
        super().__init__(layer, dict(zip(NAMES, shapes, strict=True)), dtype, clients)
        self.scale, self.rank, self.experts = scale, rank, experts

    def compute_shares(self, seen: Tensor) -> Tensor:
        """Compute w of the chosen slots and 0 for the others: (K, rows, in) to (K, rows, slots)."""
        bias = self.stack("bias", seen).unsqueeze(1)  # (K, 1, slots)
        shut = bias < SHUT / 2
        count = (~shut[..., : self.experts]).sum(-1, keepdim=True)  # M
        logits = (seen @ self.stack("gate", seen).mT + bias).masked_fill(shut, -torch.inf)
        weights = logits.softmax(-1)
        place = weights.sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
        return weights * (place < count)

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
    """LoRA experts of the client's group and of other groups, chosen by a router."""

    rank: int = setting(8, "rank of each expert", low=1, high=1024)
    experts: int = setting(4, "largest number of experts, the own one included", low=2, high=64)
    alpha: float = setting(32.0, "numerator of the scale alpha / rank", above=0)
    targets: str | tuple[str, ...] = setting("all", "linear layers by the end of their name, or all")
    layers: int | tuple[int, ...] | None = declare_layers()

    batched: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False
    tensors: ClassVar[tuple[str, ...]] = tuple(f"{name}.weight" for name in NAMES)

    def _create_layer(self, layer: Any, dtype: torch.dtype, clients: int = 0) -> ExpertLoras:
        return ExpertLoras(layer, self.rank, self.experts, self.alpha / self.rank, dtype, clients)

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Wrap the target layers."""
        for path in find_target_layers(model.base, self.targets, self.layers):
            replace(model.base, path, self._create_layer(model.base.get_submodule(path), get_adapter_dtype(dtype)))

    def start(self, model: FederatedModel, seed: int) -> State:
        """Return A and the router uniform in +-1/sqrt(in), as LoRA's A, and everything else zero."""
        state = super().start(model, seed)
        for name in state:
            if name.endswith(("own_A.weight", "others_A.weight", "gate.weight")):
                draw_uniform(state, name, seed, state[name].shape[1] ** -0.5)
        return state

    def stack(self, path: str, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int) -> StackedLayer:
        """Return the frozen layer with the experts of K clients."""
        weight: Any = get_innermost(layer).weight
        return self._create_layer(layer, get_wide_dtype(weight.dtype), clients)


part = ExpertLora

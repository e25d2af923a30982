"""Two LoRAs beside a frozen layer, the client's own and that of all other clients, mixed at each token.

    y = W0 x + s (a_1(x) B_own A_own x + a_2(x) B_rest A_rest x),   a(x) = softmax(G x),   G (2, in), s = alpha / rank

This is the layer of FedALT (arXiv 2503.11880). Both LoRAs start as LoRA does, with different A and B = 0; G = 0, so
each has weight 1/2. The strategy fedalt keeps own and G with each client and makes rest the mean of the other clients'
own. Other strategies average all five tensors as one adapter.

Use it with `fedalt`, the strategy that it is made for.
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

OWN, REST = ("own_A", "own_B"), ("rest_A", "rest_B")
GATE = "gate"


class TwoLoras(NamedWeights):
    """A frozen layer with both LoRAs and the gate of K clients, (K, ...), or of one client."""

    def __init__(self, layer: Any, rank: int, scale: float, dtype: torch.dtype, clients: int = 0) -> None:
        """Create the factors and the gate beside `layer`; `clients` 0 stands for one client."""
        into, out = layer.in_features, layer.out_features
        factors = {name: shape for A, B in (OWN, REST) for name, shape in ((A, (rank, into)), (B, (out, rank)))}
        super().__init__(layer, factors | {GATE: (2, into)}, dtype, clients)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(K * b, T, in) to (K * b, T, out)."""
        y: Tensor = self.base_layer(x)
        seen = self.split_by_client(x)
        shares = (seen @ self.stack(GATE, x).mT).softmax(-1)
        both = [seen @ self.stack(A, x).mT @ self.stack(B, x).mT for A, B in (OWN, REST)]
        mixed = shares[..., :1] * both[0] + shares[..., 1:] * both[1]
        return y + (self.scale * mixed).reshape(y.shape)


@dataclass(frozen=True)
class RowLora(PeftMethod):
    """A client's own LoRA and that of all other clients, mixed by a gate."""

    rank: int = setting(8, "rank of each of the two adapters", low=1, high=1024)
    alpha: float = setting(32.0, "numerator of the scale alpha / rank", above=0)
    targets: str | tuple[str, ...] = setting("all", "linear layers by the end of their name, or all")
    layers: int | tuple[int, ...] | None = declare_layers()

    batched: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False
    tensors: ClassVar[tuple[str, ...]] = tuple(f"{name}.weight" for name in (*OWN, *REST, GATE))

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Wrap the target layers."""
        for path in find_target_layers(model.base, self.targets, self.layers):
            layer = model.base.get_submodule(path)
            replace(model.base, path, TwoLoras(layer, self.rank, self.alpha / self.rank, get_adapter_dtype(dtype)))

    def start(self, model: FederatedModel, seed: int) -> State:
        """Return A uniform in +-1/sqrt(in), and everything else zero."""
        state = super().start(model, seed)
        for name in state:
            if name.endswith(tuple(f"{A}.weight" for A, _ in (OWN, REST))):
                draw_uniform(state, name, seed, state[name].shape[1] ** -0.5)
        return state

    def stack(self, path: str, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int) -> StackedLayer:
        """Return the frozen layer with the LoRAs of K clients."""
        weight: Any = get_innermost(layer).weight
        dtype = get_wide_dtype(weight.dtype)
        return TwoLoras(layer, self.rank, self.alpha / self.rank, dtype, clients)


part = RowLora

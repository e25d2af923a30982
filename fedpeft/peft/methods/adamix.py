"""AdaMix: a bottleneck adapter with several down-projections, of which each pass trains one at random (Wang et al.,
arXiv 2205.12410).

    y = f(x) + up(act(down_e(f(x)))),   e drawn anew for each adapter and pass in training
    y = f(x) + up(act(mean_e down_e(f(x))))   otherwise: merged, at the cost of one adapter

after the feed-forward sublayer of each adapted block; down_e (dim, d) are `experts` many, up (d, dim) = 0 at first is
shared. The expert is drawn from the client's own stream, as dropout masks are, so that it depends on the run's seed,
the round, the client and the pass alone, whatever the client is batched with. Merged, it has the paper's numbers:
0.9 M in BERT-base (dim 48), 0.8 M in RoBERTa-large (dim 16); trained and sent are all experts and the one up.

Deviations. The paper adds a consistency loss, the symmetric KL divergence of two passes with other experts; a step is
one pass here, and the loss is the task's alone. An expert that a step has not drawn has a gradient of zero, and Adam's
momentum moves it on. All clients start from the same weights, and the plain mean is the rule: each client draws each
expert about equally often, and what it has not drawn it sends unchanged. As with other bottlenecks it is not exact.
Gradients per example are refused: one expert serves all rows of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpeft.errors import ModelError
from fedpeft.models.checkpointing import computed_again
from fedpeft.models.layers import named_like, replace
from fedpeft.models.task import FederatedModel, adapter_dtype
from fedpeft.parts import setting
from fedpeft.peft.adapter import State, TensorSpec
from fedpeft.peft.method import PeftMethod, PrivacyRoute, drawn
from fedpeft.peft.methods.bottleneck import ATTENTION_END, FEEDFORWARD_END
from fedpeft.peft.stacked_layers import StackedLayer, StackedLinear

Draw = Callable[[int], Sequence[int]]
"""From a number of experts to the one that each client in the pass has drawn; none outside training."""


class Mixture(StackedLayer):
    """The last frozen projection of a sublayer, and K clients' adapters behind it, or one client's alone.

    down: weight ([K,] experts * dim, d) and bias, expert after expert; up: weight ([K,] d, dim) and bias.
    """

    def __init__(self, layer: nn.Module, sizes: tuple[int, int, int], act: str, dtype: torch.dtype, clients: int = 0):
        super().__init__(max(clients, 1))
        self.experts, dim, width = sizes
        self.base_layer = layer
        down, up = nn.Linear(width, self.experts * dim, dtype=dtype), nn.Linear(dim, width, dtype=dtype)
        self.down: nn.Module = StackedLinear(down, clients) if clients else down
        self.up: nn.Module = StackedLinear(up, clients) if clients else up
        self.act = getattr(F, act)
        self._draw: Draw | None = None
        self._chosen: Sequence[int] = ()

    def draw_from(self, draw: Draw) -> None:
        """Have experts drawn by `draw` in each pass."""
        self._draw = draw

    def routed(self, parameter: Any, entries: int, chosen: Sequence[int]) -> Tensor:
        """Of each client's experts, (K, experts * dim, ...), the drawn one, or their mean, (K, dim, ...)."""
        shape = parameter.shape[-entries:]
        each = parameter.reshape(-1, self.experts, shape[0] // self.experts, *shape[1:])[: self.active]
        if not chosen:
            mean: Tensor = each.mean(1)
            return mean
        return torch.stack([client[expert] for client, expert in zip(each, chosen, strict=True)])

    def forward(self, x: Tensor) -> Tensor:
        """(K * b, T, in) to (K * b, T, d); computed in the adapter's precision."""
        y: Tensor = self.base_layer(x)
        if not computed_again():  # where blocks are, their experts are those of the first time
            self._chosen = self._draw(self.experts) if self._draw else ()
        weight, bias = (self.routed(p, n, self._chosen) for p, n in ((self.down.weight, 2), (self.down.bias, 1)))
        seen = self.per_client(y.to(weight.dtype))
        hidden = self.act(torch.baddbmm(bias.unsqueeze(1), seen, weight.mT))
        added: Tensor = self.up(hidden)
        return y + added.reshape(y.shape).to(y.dtype)


@dataclass(frozen=True)
class AdaMix(PeftMethod):
    """Bottleneck adapters whose down-projection is drawn anew in each pass, and averaged in the end."""

    dim: int = setting(16, "width of the bottleneck", low=1, high=4096)
    experts: int = setting(4, "down-projections of each adapter", low=1, high=64)
    activation: str = setting("gelu", "between down and up", choices=("relu", "gelu", "silu", "tanh"))
    layers: int = setting(2, "adapt this many uppermost blocks; 0: all blocks", low=0)

    batched: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False
    privacy: ClassVar[PrivacyRoute] = "refused"
    tensors: ClassVar[tuple[str, ...]] = ("down.weight", "down.bias", "up.weight", "up.bias")

    def config(self, base: nn.Module) -> Any:
        """None: the `peft` library has no such method."""
        return None

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Wrap the last projection of the feed-forward sublayers."""
        attention = named_like(model.base, ATTENTION_END, self.layers)
        ends = [path for path in named_like(model.base, FEEDFORWARD_END, self.layers) if path not in attention]
        if not ends:
            raise ModelError(f"adamix does not know the sublayers of {type(model.base).__name__}; take lora or ia3")
        for path in ends:
            layer: Any = model.base.get_submodule(path)
            sizes = (self.experts, self.dim, layer.out_features)
            made = Mixture(layer, sizes, self.activation, adapter_dtype(dtype))
            replace(model.base, path, made.to(layer.weight.device))

    def start(self, model: FederatedModel, seed: int) -> State:
        """down uniform in +-1/sqrt(d), each expert its own; everything else zero."""
        state = super().start(model, seed)
        for name in state:
            if name.endswith("down.weight"):
                drawn(state, name, seed, state[name].shape[1] ** -0.5)
            elif name.endswith(self.tensors):
                state[name].zero_()
        return state

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """K clients' adapters behind each sublayer."""
        dtype = torch.float64 if next(model.base.parameters()).dtype == torch.float64 else torch.float32
        for spec in tensors:
            if spec.name.endswith(".down.weight"):
                layer = model.base.get_submodule(spec.module)
                sizes = (self.experts, self.dim, spec.shape[1])
                replace(model.base, spec.module, Mixture(layer, sizes, self.activation, dtype, clients))


part = AdaMix

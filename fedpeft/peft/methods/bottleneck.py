"""Bottleneck adapters: a small network after (or beside) a frozen sublayer.

    y = f(x) + up(act(down(z))),   down (dim, d), up (d, dim) = 0 at first

    houlsby    z = f(x), after the attention and after the feed-forward sublayer (Houlsby et al., arXiv 1902.00751)
    pfeiffer   z = f(x), after the feed-forward sublayer alone (Pfeiffer et al., arXiv 2005.00052)
    parallel   z = x, beside the feed-forward sublayer (He et al., arXiv 2110.04366)

The adapter sits before the sublayer's residual connection. Deviation: Pfeiffer et al. put theirs behind that connection
and its layer normalization. All clients start from the same weights, and the rule is the
plain mean (FedAvg). It is not exact, since the network is not linear, and an exact closed form does not exist.

Use it for fewer bytes than LoRA if the adapter need not be merged into the base.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fedpeft.errors import ModelError
from fedpeft.models.dtypes import get_adapter_dtype, get_wide_dtype
from fedpeft.models.layers import Layers, declare_layers, find_by_endings, replace
from fedpeft.models.task import FederatedModel
from fedpeft.parts import setting
from fedpeft.peft.adapter import State
from fedpeft.peft.method import PeftMethod, PrivacyRoute, draw_uniform
from fedpeft.peft.stacked_layers import StackedLayer, StackedLinear

ATTENTION_END = (
    ".attention.output.dense",
    ".o_proj",
    ".out_proj",
    ".attn.c_proj",
    ".attention.out_lin",
    ".SelfAttention.o",
)
FEEDFORWARD_START = (".intermediate.dense", ".gate_proj", ".fc1", ".c_fc", ".ffn.lin1", ".DenseReluDense.wi", ".ffn")
FEEDFORWARD_END = (
    ".output.dense",
    ".down_proj",
    ".fc2",
    ".mlp.c_proj",
    ".ffn.lin2",
    ".DenseReluDense.wo",
    ".ffn_output",
)
"""Usual names of the last projection of a sublayer, and of the first projection of the feed-forward sublayer."""


PLACES = ("houlsby", "pfeiffer", "parallel")


class Tap:
    """The input of the feed-forward sublayer in a pass, kept for the adapter that reads it at the sublayer's end."""

    def __init__(self, layer: nn.Module) -> None:
        """Register a hook before `layer`, the first projection of the sublayer."""
        self.input: Tensor | None = None
        layer.register_forward_pre_hook(self)

    def __call__(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Store the input of the sublayer's first projection."""
        self.input = arguments[0]

    def take(self) -> Tensor:
        """Return the stored input and forget it."""
        taken, self.input = self.input, None
        assert taken is not None
        return taken


def create_tap(base: nn.Module, end: str, place: str) -> Tap | None:
    """Create the tap at the start of the feed-forward sublayer that ends at `end`; None unless `place` is parallel.

    Raises:
        ModelError: the block has no such start.
    """
    if place != "parallel":
        return None
    block = ".".join(end.split(".")[: 1 + next(i for i, word in enumerate(end.split(".")) if word.isdigit())])
    for name, layer in base.get_submodule(block).named_modules():
        if f".{name}".replace(".base_layer", "").endswith(FEEDFORWARD_START):
            return Tap(layer)
    raise ModelError(f"FP4061 bottleneck finds no start of the feed-forward sublayer in {block}; use place=pfeiffer")


class Bottleneck(nn.Module):
    """The last frozen projection of a sublayer and the adapter behind it, computed in the adapter's precision."""

    def __init__(self, layer: nn.Module, width: int, dim: int, tap: Tap | None, act: str, dtype: torch.dtype) -> None:
        """Create an adapter (dim, width) behind `layer` that adds nothing at first."""
        super().__init__()
        self.base_layer = layer
        self.down = nn.Linear(width, dim, dtype=dtype)
        self.up = nn.Linear(dim, width, dtype=dtype)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.tap = tap
        self.act = getattr(functional, act)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., d)."""
        y: Tensor = self.base_layer(x)
        z = y if self.tap is None else self.tap.take()
        added: Tensor = self.up(self.act(self.down(z.to(self.down.weight.dtype))))
        return y + added.to(y.dtype)


class StackedBottleneck(StackedLayer):
    """A frozen projection with the adapters of K clients: down (K, dim, d) and up (K, d, dim), with biases."""

    def __init__(
        self, layer: nn.Module, shape: tuple[int, ...], clients: int, tap: Tap | None, act: str, dtype: torch.dtype
    ) -> None:
        """Create the adapters of K `clients` behind `layer`, each of `shape` (dim, width)."""
        super().__init__(clients)
        dim, width = shape
        self.base_layer = layer
        self.down = StackedLinear(nn.Linear(width, dim, dtype=dtype), clients)
        self.up = StackedLinear(nn.Linear(dim, width, dtype=dtype), clients)
        self.tap = tap
        self.act = getattr(functional, act)

    def forward(self, x: Tensor) -> Tensor:
        """(K * b, T, in) to (K * b, T, d)."""
        y: Tensor = self.base_layer(x)
        z = y if self.tap is None else self.tap.take()
        added: Tensor = self.up(self.act(self.down(z)))
        return y + added.view_as(y)


def find_feedforward_ends(base: nn.Module, layers: Layers) -> list[str]:
    """Return the paths of the last projections of feed-forward sublayers in the adapted blocks."""
    attention = find_by_endings(base, ATTENTION_END, layers)
    return [path for path in find_by_endings(base, FEEDFORWARD_END, layers) if path not in attention]


def draw_down(state: State, tensors: tuple[str, ...], seed: int) -> State:
    """Draw down-projections (dim, d) anew, uniform in +-1/sqrt(d), and set the other `tensors` of `state` to zero."""
    for name in state:
        if name.endswith("down.weight"):
            draw_uniform(state, name, seed, state[name].shape[1] ** -0.5)
        elif name.endswith(tensors):
            state[name].zero_()
    return state


@dataclass(frozen=True)
class BottleneckAdapters(PeftMethod):
    """Small networks behind frozen sublayers."""

    dim: int = setting(16, "width of the bottleneck", low=1, high=4096)
    place: str = setting("pfeiffer", "place of the adapters", choices=PLACES)
    activation: str = setting(
        "relu", "activation function between down and up", choices=("relu", "gelu", "silu", "tanh")
    )
    layers: int | tuple[int, ...] | None = declare_layers()

    batched: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False
    privacy: ClassVar[PrivacyRoute] = "hooks"
    composes: ClassVar[bool] = True
    tensors: ClassVar[tuple[str, ...]] = ("down.weight", "down.bias", "up.weight", "up.bias")

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Wrap the last projection of the sublayers."""
        attention = find_by_endings(model.base, ATTENTION_END, self.layers)
        ends = find_feedforward_ends(model.base, self.layers)
        starts = find_by_endings(model.base, FEEDFORWARD_START, self.layers)
        if not ends or (self.place == "houlsby" and not attention) or (self.place == "parallel" and not starts):
            raise ModelError(
                f"FP4062 bottleneck finds no sublayers for place={self.place} in {type(model.base).__name__}; "
                "use lora or ia3"
            )
        for path in [*(attention if self.place == "houlsby" else []), *ends]:
            layer: Any = model.base.get_submodule(path)
            tap = create_tap(model.base, path, self.place)
            kind = get_adapter_dtype(dtype)
            replace(model.base, path, Bottleneck(layer, layer.out_features, self.dim, tap, self.activation, kind))

    def start(self, model: FederatedModel, seed: int) -> State:
        """Return down-projections uniform in +-1/sqrt(d), and everything else zero."""
        return draw_down(super().start(model, seed), self.tensors, seed)

    def stack_into(self, model: FederatedModel, tensors: Any, clients: int) -> None:
        """Put K clients' adapters behind each sublayer."""
        dtype = get_wide_dtype(next(model.base.parameters()).dtype)
        for spec in tensors:
            if spec.name.endswith(".down.weight"):
                layer = model.base.get_submodule(spec.module)
                tap = create_tap(model.base, spec.module, self.place)
                stacked = StackedBottleneck(layer, spec.shape, clients, tap, self.activation, dtype)
                replace(model.base, spec.module, stacked)


part = BottleneckAdapters

"""UniPELT: several PEFT methods in one model, each behind a learned gate (Mao et al., arXiv 2110.07577).

    y = f(x) + g(h) (f'(x) - f(x)),   g(h) = sigmoid(w . h + b) in (0, 1), one number for each token

f is a frozen layer or attention, f' the same with the method. Every adapted layer of every method has a gate of its
own, so that the model learns which method to use where. With g = 1 it computes the methods joined by `+`, with g = 0
the base. All w and b start at 0, so gates start at a half.

    lora           h is the layer's input
    bottleneck     h is the frozen sublayer's output, which the bottleneck reads
    prefix_tuning  h is the attention's input, and g weighs the heads' outputs with the prefix against those without

Read were the abstract, and LoRA's gate in lora_layers.py of the authors' code.

Deviations. The paper gates whole examples by a mean over their tokens. Here each token has its gate, so that outputs do
not depend on padding, and a language model's do not depend on later tokens. The authors' gate of LoRA starts at
random and takes the place of alpha / rank; here it multiplies that scale. The paper scales a prefix's keys and values,
which with g = 0 still take attention. Its LoRA is in queries and values and its bottleneck after each feed-forward
sublayer; `methods` sets both.

Rule: the plain mean of all tensors from a shared start. It is not exact, since gates multiply what they gate. The gates
are trained, sent and averaged like all other tensors. A gated layer is computed twice.

Use it if it is unclear which of these methods suits the task, and some more compute is affordable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.errors import ConfigError
from fedpeft.models.dtypes import get_adapter_dtype, get_wide_dtype
from fedpeft.models.layers import KEY_PROJECTIONS, get_innermost, replace
from fedpeft.models.quantized_base import Precision
from fedpeft.models.task import FederatedModel
from fedpeft.parts import setting
from fedpeft.parts.families import PEFT_METHODS
from fedpeft.peft.adapter import AdapterShape, Role, State, TensorSpec
from fedpeft.peft.hybrid import Hybrid
from fedpeft.peft.method import PeftMethod, PrivacyRoute
from fedpeft.peft.methods.bottleneck import BottleneckAdapters
from fedpeft.peft.methods.lora import Lora
from fedpeft.peft.methods.prefix_tuning import PrefixTuning
from fedpeft.peft.stacked_layers import StackedLayer, StackedLinear

MARKS = {"lora": "lora_A", "bottleneck": "down"}
"""A child that only layers with the method have, by the first part of their gates' names."""

KINDS: dict[str, type[PeftMethod]] = {"lora": Lora, "bottleneck": BottleneckAdapters, "prefix": PrefixTuning}
"""The methods that can have a gate, by the first part of their gates' names."""


class Gate(StackedLayer):
    """A gate of K clients, or of one: (..., width) to (..., 1)."""

    def __init__(self, width: int, like: Tensor, dtype: torch.dtype, clients: int) -> None:
        """Create w and b as zeros on the device of `like`; `clients` 0 stands for one client."""
        super().__init__(max(clients, 1))
        linear = nn.Linear(width, 1, dtype=dtype)
        self.linear: nn.Module = StackedLinear(linear, clients) if clients else linear
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        self.to(like.device)

    def forward(self, h: Tensor) -> Tensor:
        """Return g, in the dtype of the gate."""
        weight: Tensor = self.linear.weight  # type: ignore[assignment]
        scores: Tensor = self.linear(h.to(weight.dtype))
        return scores.view(*h.shape[:-1], 1).sigmoid()


class GatedLayer(nn.Module):
    """A layer with an adapter, `base_layer`, and the gate that weighs it against the same layer without adapter."""

    def __init__(self, layer: nn.Module, name: str, gate: Gate, reads_output: bool) -> None:
        """Wrap `layer`; `name` is the gate's name, and `reads_output` whether it reads the frozen layer's output."""
        super().__init__()
        self.base_layer, self.reads_output, self._name = layer, reads_output, name
        self.add_module(name, gate)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        layer: Any = self.base_layer
        adapted: Tensor = layer(x)
        plain: Tensor = layer.base_layer(x)
        gate: Tensor = self.get_submodule(self._name)(plain if self.reads_output else x)
        return plain + (gate * (adapted - plain)).to(plain.dtype)


class AttentionGate(Gate):
    """The gate of an attention module's prefix; it keeps the module's input until the heads' outputs are there."""

    seen: Tensor | None = None

    def keep(self, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Keep the attention module's input (B, T, d)."""
        self.seen = arguments[0] if arguments else named["hidden_states"]

    def mix(self, plain: Tensor, adapted: Tensor) -> Tensor:
        """Weigh the heads' outputs (B, T, heads, d / heads) with the prefix against those without it."""
        seen, self.seen = self.seen, None
        assert seen is not None
        change: Tensor = self(seen)[..., None] * (adapted - plain)
        return plain + change.to(plain.dtype)


@dataclass(frozen=True)
class UniPelt(PeftMethod):
    """Several methods, each behind a learned gate."""

    methods: str = setting(
        "lora + prefix_tuning + bottleneck",
        "the gated methods with their settings: at least one of lora, prefix_tuning and bottleneck",
        nested=PEFT_METHODS,
    )

    batched: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse methods that can't have a gate.

        Raises:
            ConfigError: names the method.
        """
        for part in self.parts:
            if not isinstance(part, tuple(KINDS.values())) or not part.composes:
                raise ConfigError(
                    f"FP1633 {part.name} can't have a gate in unipelt; methods joins lora, prefix_tuning and bottleneck"
                )

    @cached_property
    def inner(self) -> PeftMethod:
        """The methods without gates."""
        return PEFT_METHODS.build(self.methods)

    @property
    def parts(self) -> tuple[PeftMethod, ...]:
        """The methods, one by one."""
        return self.inner.parts if isinstance(self.inner, Hybrid) else (self.inner,)

    @property
    def joined(self) -> Hybrid:
        """The methods as a combination, perhaps of one."""
        return Hybrid(self.parts)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The first part of the gates' names of each method."""
        return tuple(kind for kind, cls in KINDS.items() if any(isinstance(part, cls) for part in self.parts))

    @property
    def tensors(self) -> tuple[str, ...]:  # type: ignore[override]
        """Name endings of the methods' tensors, and of the gates'."""
        gates = (f"{kind}_gate.linear.{part}" for kind in self.kinds for part in ("weight", "bias"))
        return (*self.joined.tensors, *gates)

    @property
    def form(self) -> AdapterShape | None:
        """Rank and alpha of lora, if it is among the methods."""
        return self.joined.form

    @property
    def base_precision(self) -> Precision:
        """Precision of the methods' base."""
        return self.inner.base_precision

    @property
    def few_bits(self) -> bool:  # type: ignore[override]
        """Whether all methods work beside layers in few bits."""
        return self.joined.few_bits

    @property
    def privacy(self) -> PrivacyRoute:  # type: ignore[override]
        """The route through the whole model, unless a method has none."""
        return "refused" if self.joined.privacy == "refused" else "vmap"

    def role(self, name: str) -> tuple[Role, str]:
        """Return role and module as the method that owns the tensor defines them; gates are plain."""
        for kind in self.kinds:
            module, found, _ = name.partition(f".{kind}_gate.linear.")
            if found:
                return "plain", module
        return self.joined.role(name)

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Attach the methods, then their gates."""
        self.joined.attach(model, dtype)
        self._put_gates(model.base, get_adapter_dtype(dtype), 0)

    def _put_gates(self, base: nn.Module, dtype: torch.dtype, clients: int) -> None:
        for path, module in reversed([*base.named_modules()]):  # from the innermost layer, so that paths stay right
            for kind, mark in MARKS.items():
                if kind in self.kinds and isinstance(getattr(module, mark, None), nn.Module):
                    inner: Any = get_innermost(module)
                    width = inner.in_features if kind == "lora" else inner.out_features
                    gate = Gate(width, next(module.parameters()), dtype, clients)
                    wrapped = GatedLayer(base.get_submodule(path), f"{kind}_gate", gate, kind == "bottleneck")
                    replace(base, path, wrapped)
            if "prefix" in self.kinds and isinstance(prefix := getattr(module, "prefix", None), nn.Module):
                key: Any = next(getattr(module, k) for k in KEY_PROJECTIONS if hasattr(module, k))
                attention = AttentionGate(get_innermost(key).in_features, next(prefix.parameters()), dtype, clients)  # type: ignore[arg-type]
                module.add_module("prefix_gate", attention)
                module.register_forward_pre_hook(attention.keep, with_kwargs=True)

    def start(self, model: FederatedModel, seed: int) -> State:
        """Return the methods' own start, and gates of zeros."""
        return super().start(model, seed) | self.joined.start(model, seed)

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """Stack the methods, then their gates."""
        dtype = get_wide_dtype(next(model.base.parameters()).dtype)
        self.joined.stack_into(model, [t for t in tensors if "_gate.linear." not in t.name], clients)
        self._put_gates(model.base, dtype, clients)


part = UniPelt

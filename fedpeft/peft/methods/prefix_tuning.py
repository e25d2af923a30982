"""Prefix tuning, or P-tuning v2: learned keys and values before those of the example, in every adapted block.

    attention(q, [P_k; k], [P_v; v]),   P_k, P_v (length, d)

Only P_k and P_v are trained (Li and Liang, arXiv 2101.00190; Liu et al., arXiv 2110.07602). In a language model they
start as the model's own keys and values of random tokens (Li and Liang, section 7.4: activations of words start better
than noise). Its keys are long and point one way, and a prefix far from them gets neither attention nor gradient. In
other models P_k starts small and P_v at zero, because the head is computed on the features of the base. A prefix that
takes attention from a short example would change these features.

Deviation. `peft` passes prefixes through the cache of generation, which encoders and vision models refuse. Here they
join inside the attention of any model that takes its attention function from transformers' registry. Positions do not
move. There is no reparameterization network, because P-tuning v2 found it unnecessary.

Rule: the plain mean from a shared start. If clients hold different lengths, each position is averaged over the clients
that own it (strategy owned_mean).

Use it if weights must stay as they are and each block should get a prefix, for example in language models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.data.examples import MADE_UP_TOKENS, make_up_batch
from fedpeft.machine import seeds
from fedpeft.models import attention
from fedpeft.models.dtypes import get_adapter_dtype, get_wide_dtype
from fedpeft.models.layers import KEY_PROJECTIONS, declare_layers, get_innermost
from fedpeft.models.task import FederatedModel, get_canonical_name
from fedpeft.parts import setting
from fedpeft.peft.adapter import AdapterShape, Role, State, TensorSpec
from fedpeft.peft.method import PeftMethod, draw_uniform
from fedpeft.peft.prompts import find_task_type
from fedpeft.peft.stacked_layers import StackedLayer


class Prefix(StackedLayer):
    """The prefixes of K clients in one block: `key` and `value` (K, length, d), or (length, d) for one client.

    `lengths` contains the number of positions that each client holds.
    """

    lengths: Tensor
    follows_form = True

    def __init__(self, length: int, width: int, dtype: torch.dtype, clients: int = 0) -> None:
        """Create zero prefixes; `clients` 0 stands for one client."""
        super().__init__(max(clients, 1))
        shape = (clients, length, width) if clients else (length, width)
        self.key = nn.Parameter(torch.zeros(shape, dtype=dtype))
        self.value = nn.Parameter(torch.zeros(shape, dtype=dtype))
        self.register_buffer("lengths", torch.full((self.active,), length), persistent=False)

    def set_forms(self, forms: Sequence[AdapterShape | None]) -> None:
        """Set the clients' prefix lengths."""
        for k, form in enumerate(forms):
            if form is not None and self.follows_form:
                self.lengths[k] = form.rank

    def set_form(self, form: AdapterShape) -> None:
        """Set the one client's prefix length."""
        self.set_forms([form])

    def forward(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Put the prefixes before keys and values (B, heads, T, head width).

        Returns:
            Keys and values (B, heads, length + T, head width), and which positions of the prefix count, (B, length).
        """
        rows, heads, _, width = key.shape
        longest = self.key.shape[-2]

        def prepend(prefix: Tensor, own: Tensor) -> Tensor:
            per_client = prefix.reshape(-1, longest, heads, width)[: self.active].to(own.dtype)
            before = per_client.repeat_interleave(rows // self.active, dim=0).transpose(1, 2)
            return torch.cat([before, own], dim=2)

        counted = torch.arange(longest, device=key.device) < self.lengths[: self.active, None]
        counted = counted.repeat_interleave(rows // self.active, dim=0)
        return prepend(self.key, key), prepend(self.value, value), counted


@dataclass(frozen=True)
class PrefixTuning(PeftMethod):
    """Learned keys and values before those of the example."""

    length: int = setting(10, "positions of the prefix", low=1, high=512)
    layers: int | tuple[int, ...] | None = declare_layers()

    batched: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False
    mixed_sizes: ClassVar[bool] = True
    composes: ClassVar[bool] = True
    tensors: ClassVar[tuple[str, ...]] = ("prefix.key", "prefix.value")

    @property
    def form(self) -> AdapterShape:
        """Length of the prefix."""
        return AdapterShape(self.length, self.length)

    def get_settings_for(self, form: AdapterShape) -> dict[str, Any]:
        """Return the length."""
        return {"length": form.rank}

    def role(self, name: str) -> tuple[Role, str]:
        """Return the prefixes' role; their rows are positions."""
        return ("prompt", name.rpartition(".")[0]) if name.endswith(self.tensors) else super().role(name)

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Give every attention module of the adapted blocks a prefix."""
        for path, width in self._prepare_modules(model.base).items():
            module = model.base.get_submodule(path)
            module.add_module("prefix", Prefix(self.length, width, get_adapter_dtype(dtype)))

    def _prepare_modules(self, base: nn.Module) -> dict[str, int]:
        """Make the attention modules read prefixes, and return the width of their keys by path."""
        widths = {}
        for path, module in attention.prepare_attention_modules(base, self.layers, "prefix_tuning").items():
            key: Any = next(getattr(module, k) for k in KEY_PROJECTIONS if hasattr(module, k))
            inner: Any = get_innermost(key)
            widths[path] = int(inner.out_features)
        return widths

    def start(self, model: FederatedModel, seed: int) -> State:
        """Return keys and values of random tokens in language models; elsewhere keys uniform in +-0.1 and values zero.

        The former contain the base's rounding, so they are equal only on machines of one kind. A lossy downlink counts
        from the start: with it, clients on another kind of machine train beside the server's state by that much.
        """
        state = super().start(model, seed)
        prefixes = {get_canonical_name(name): m for name, m in model.named_modules() if isinstance(m, Prefix)}
        if find_task_type(model.base) != "CAUSAL_LM":
            for name in prefixes:
                draw_uniform(state, f"{name}.key", seed, 0.1)
                state[f"{name}.value"].zero_()
            return state
        seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        hooks = [prefix.register_forward_pre_hook(seen.__setitem__) for prefix in prefixes.values()]
        for prefix in prefixes.values():
            prefix.lengths.zero_()
        rows = make_up_batch(
            model.base.config, -(-self.length // MADE_UP_TOKENS), seeds.create_torch_generator(seed, "prefix", 0)
        )
        with torch.no_grad():
            model.base(**rows)
        for hook in hooks:
            hook.remove()
        for name, prefix in prefixes.items():
            prefix.lengths.fill_(self.length)
            for kind, own in zip(("key", "value"), seen[prefix], strict=True):
                positions = own.transpose(1, 2).flatten(2).flatten(0, 1)
                state[f"{name}.{kind}"] = positions[: self.length].to(torch.float32, copy=True)
        return state

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """Put K prefixes into each attention module."""
        self._prepare_modules(model.base)
        dtype = get_wide_dtype(next(model.base.parameters()).dtype)
        for spec in tensors:
            if spec.name.endswith(".key"):
                module = model.base.get_submodule(spec.module.removesuffix(".prefix"))
                module.add_module("prefix", Prefix(spec.shape[0], spec.shape[1], dtype, clients))


part = PrefixTuning

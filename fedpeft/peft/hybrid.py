"""Several PEFT methods in one model: `lora(rank=8) + bitfit`.

Each method keeps its own tensors and its own rule; strategies see the union. All clients have equal sizes.

Methods that the `peft` library lacks wrap layers first, each inside the previous one. Then `peft` puts its layers
inside them, each around the previous one, and LoRA's comes last. So s B A is added to the output that ia3 has scaled.
It stays linear in the weights, and LoRA's rules hold. The batched executor stacks from the innermost layer outwards and
computes the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fedpeft.errors import ConfigError
from fedpeft.models.dtypes import get_adapter_dtype
from fedpeft.models.layers import replace
from fedpeft.models.task import FederatedModel
from fedpeft.peft.adapter import AdapterShape, Role, State, TensorSpec
from fedpeft.peft.method import PeftMethod, PrivacyRoute

LORA_B = "lora_B.weight"


@dataclass(frozen=True)
class Hybrid(PeftMethod):
    """Several methods, `parts`, in the user's order."""

    parts: tuple[PeftMethod, ...]

    in_peft: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse parts that cannot be combined, and two parts that train the same tensors.

        Raises:
            ConfigError: names the part, or the combination.
        """
        for part in self.parts:
            if not part.composes:
                raise ConfigError(f"FP1239 {part.name} can't be combined with other methods; use it alone")
        names = [ending for part in self.parts for ending in part.tensors]
        if len(set(names)) < len(names):
            raise ConfigError(f"FP1240 {self.name} has two methods that train the same tensors; name each method once")

    @property
    def name(self) -> str:
        """Names of the parts, joined by ` + `."""
        return " + ".join(part.name for part in self.parts)

    @property
    def batched(self) -> bool:  # type: ignore[override]
        """Whether all parts are batched."""
        return all(part.batched for part in self.parts)

    @property
    def few_bits(self) -> bool:  # type: ignore[override]
        """Whether all parts work beside layers in nf4 or int8."""
        return all(part.few_bits for part in self.parts)

    @property
    def merges(self) -> bool:  # type: ignore[override]
        """Whether all parts can be merged into the base."""
        return all(part.merges for part in self.parts)

    @property
    def reads(self) -> str:  # type: ignore[override]
        """What the head of the first part that changes it reads; empty: the last hidden states."""
        return next((part.reads for part in self.parts if part.reads), "")

    @property
    def suited_head(self) -> str:  # type: ignore[override]
        """The first `suited_head` that a part defines; empty: none."""
        return next((part.suited_head for part in self.parts if part.suited_head), "")

    @property
    def privacy(self) -> PrivacyRoute:  # type: ignore[override]
        """The fastest route to gradients per example that all parts support."""
        slowest_first: tuple[PrivacyRoute, ...] = ("refused", "vmap", "hooks")
        return min((part.privacy for part in self.parts), key=slowest_first.index)

    @property
    def tensors(self) -> tuple[str, ...]:  # type: ignore[override]
        """Name endings of the tensors of all parts."""
        return tuple(ending for part in self.parts for ending in part.tensors)

    @property
    def form(self) -> AdapterShape | None:
        """Shape of the part that trains LoRA factors; None: no part does."""
        return next((part.form for part in self.parts if part.form and LORA_B in part.tensors), None)

    @property
    def _ordered_methods(self) -> list[PeftMethod]:
        """The methods in the order in which they wrap layers."""
        return sorted(self.parts, key=lambda part: (part.in_peft, LORA_B in part.tensors))

    def read(self, base: nn.Module) -> None:
        """Apply `read` of every part."""
        for part in self.parts:
            part.read(base)

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Attach all methods. `peft` freezes parameters that it did not create; they are made trainable again."""
        from peft import inject_adapter_in_model

        of_base = set(model.base.parameters())
        trained: list[nn.Parameter] = []
        for part in self._ordered_methods:
            if part.in_peft:
                inject_adapter_in_model(part.config(model.base), model.base)
                del model.base.peft_config  # it describes one method, and would be saved as the whole adapter
                part.settle(model.base)
            else:
                part.attach(model, dtype)
            trained += [p for p in model.base.parameters() if p.requires_grad]
            for parameter in trained:
                parameter.requires_grad_(True)
        for parameter in model.base.parameters():
            if parameter.requires_grad or parameter not in of_base:  # frozen factors, too
                parameter.data = parameter.data.to(get_adapter_dtype(dtype))
        self._fix_sizes(model)

    def merge_adapter(self, model: FederatedModel) -> nn.Module:
        """Return the plain base.

        Layers are merged from the innermost one, because each is merged into the layer that it wraps.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, layer in reversed([*model.base.named_modules()]):
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                replace(model.base, name, model.base.get_submodule(f"{name}.base_layer"))
        for part in self._ordered_methods:
            if not part.in_peft:
                part.merge_adapter(model)
        return model.base

    def _fix_sizes(self, model: FederatedModel) -> None:
        for module in model.base.modules():
            if hasattr(module, "follows_form"):
                module.follows_form = False  # type: ignore[assignment]

    def _find_owner(self, name: str) -> PeftMethod | None:
        fitting = [(len(e), i) for i, p in enumerate(self.parts) for e in p.tensors if name.endswith("." + e)]
        return self.parts[max(fitting)[1]] if fitting else None

    def role(self, name: str) -> tuple[Role, str]:
        """Return role and module as the part that owns the tensor defines them."""
        owner = self._find_owner(name)
        if owner is None or name.startswith("head."):
            return super().role(name)
        role, module = owner.role(name)
        return ("plain" if role == "prompt" else role), module

    def start(self, model: FederatedModel, seed: int) -> State:
        """Return the start values of each part for its own tensors."""
        state = super().start(model, seed)
        for part in self.parts:
            own = part.start(model, seed)
            state |= {name: tensor for name, tensor in own.items() if self._find_owner(name) is part}
        return state

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """Stack the parts from the innermost one outwards."""
        ordered = self._ordered_methods
        outwards = [p for p in ordered if p.in_peft] + [p for p in reversed(ordered) if not p.in_peft]
        for part in outwards:
            part.stack_into(model, [t for t in tensors if self._find_owner(t.name) is part], clients)
        self._fix_sizes(model)

"""DoRA: LoRA moves the direction of a weight, a vector its magnitude (Liu et al., arXiv 2402.09353).

    W = m * (W0 + s B A) / norm(W0 + s B A), the norm of each row (output);   m = norm(W0) at first

The rule: factors as LoRA's (any rule on s B A but those that fill the base), m by its plain mean. That is not exact,
since the norm is not linear: each round records how far the aggregate is from the mean of the clients' weights
(`aggregation_error`).

Use it if slower steps are affordable: they took 1.3 times LoRA's time in `experiments/peft_methods`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from fedpeft.models.task import FederatedModel
from fedpeft.peft.adapter import AdapterShape, Role, State
from fedpeft.peft.method import PrivacyRoute, WeightChanges
from fedpeft.peft.methods.lora import Lora
from fedpeft.peft.stacked_layers import StackedLayer

MAGNITUDE = "lora_magnitude_vector.weight"


@dataclass(frozen=True)
class Dora(Lora):
    """Low-rank factors and a magnitude for each output."""

    batched: ClassVar[bool] = False
    privacy: ClassVar[PrivacyRoute] = "vmap"
    residual: ClassVar[bool] = False
    composes: ClassVar[bool] = False
    few_bits: ClassVar[bool] = False
    tensors: ClassVar[tuple[str, ...]] = ("lora_A.weight", "lora_B.weight", MAGNITUDE)

    def variant(self) -> dict[str, Any]:
        """peft's own switch."""
        return {"use_dora": True}

    def role(self, name: str) -> tuple[Role, str]:
        """The magnitude is a plain parameter of its layer."""
        if name.endswith("." + MAGNITUDE):
            return "plain", name.removesuffix("." + MAGNITUDE)
        return super().role(name)

    def weight_changes(self, model: FederatedModel) -> WeightChanges:
        """W - W0 of each layer."""
        base: Any = model.base.get_base_model()  # type: ignore[operator]
        weights = {
            path: base.get_submodule(path).get_base_layer().weight.detach().double()
            for path in (name.removesuffix(".lora_A.weight") for name in self._list_factors(model))
        }

        def changes(state: State, form: AdapterShape | None) -> dict[str, Tensor]:
            found, scale = {}, (form or self.form).scale
            for path, W in weights.items():
                moved = W + scale * state[f"{path}.lora_B.weight"].double() @ state[f"{path}.lora_A.weight"].double()
                magnitude = state[f"{path}.{MAGNITUDE}"].double()
                found[path] = magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True) - W
            return found

        return changes

    def _list_factors(self, model: FederatedModel) -> list[str]:
        return [t.name for t in self.layout(model).tensors if t.role == "lora_A"]

    def stack(self, path: str, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int) -> StackedLayer:
        """None: DoRA trains one client at a time."""
        raise NotImplementedError


part = Dora

"""DoRA: LoRA changes the direction of a weight, and a vector its magnitude (Liu et al., arXiv 2402.09353).

    W = m * (W0 + s B A) / norm(W0 + s B A), the norm of each row (output);   m = norm(W0) at first

Rule: factors as LoRA's (any rule on s B A except those that put a residual into the base), and the plain mean of m. It
is not exact, since the norm is not linear. Each round records the distance of the aggregate from the mean of the
clients' weights (`aggregation_error`).

Use it if slower steps are affordable: they took 1.3 times LoRA's time in `experiments/peft_methods`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fedpeft.models.task import FederatedModel
from fedpeft.peft.abilities import WeightChanges
from fedpeft.peft.adapter import AdapterShape, State
from fedpeft.peft.method import PrivacyRoute
from fedpeft.peft.methods.lora import Lora

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
        """Return the `peft` setting that turns DoRA on."""
        return {"use_dora": True}

    def weight_changes(self, model: FederatedModel) -> WeightChanges:
        """Return a function that computes W - W0 of each layer."""
        base: Any = model.base.get_base_model()  # type: ignore[operator]
        weights = {
            t.module: base.get_submodule(t.module).get_base_layer().weight.detach().double()
            for t in self.layout(model).tensors
            if t.role == "lora_A"
        }

        def changes(state: State, form: AdapterShape | None) -> dict[str, Tensor]:
            differences, scale = {}, (form or self.form).scale
            for path, weight in weights.items():
                moved = (
                    weight + scale * state[f"{path}.lora_B.weight"].double() @ state[f"{path}.lora_A.weight"].double()
                )
                magnitude = state[f"{path}.{MAGNITUDE}"].double()
                differences[path] = magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True) - weight
            return differences

        return changes


part = Dora

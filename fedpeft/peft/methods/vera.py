"""VeRA: two small vectors between random matrices that are shared and frozen (Kopiczko et al., arXiv 2310.11454).

    y = W0 x + b * (B (d * (A x))),   A (R, in), B (out, R) random and fixed;   d = 0.1 (R), b = 0 (out) at first

The update is G * B seen through A, with G = b d^T: bilinear like LoRA, of rank 1 in G. So b and d are exchanged as the
factors (out, 1) and (1, R) of a pair, and LoRA's rules apply to G, in which the update is linear. `ffa_lora` (d fixed)
and `rolora` (alternating) are exact; `flexlora` takes the best rank-1 approximation of sum_k p_k b_k d_k^T. Plain means
of both are refused.

Use it if only thousands of numbers may travel and the strategy is `rolora`, `ffa_lora` or `flexlora`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from fedpeft.models.dtypes import get_adapter_dtype
from fedpeft.models.layers import declare_layers, find_target_layers
from fedpeft.models.task import FederatedModel
from fedpeft.parts import setting
from fedpeft.peft.abilities import WeightChanges
from fedpeft.peft.adapter import AdapterShape, JointMeaning, Role, State
from fedpeft.peft.method import PeftMethod

D, B = "vera_lambda_d", "vera_lambda_b"


@dataclass(frozen=True)
class Vera(PeftMethod):
    """Vectors around fixed random projections."""

    rank: int = setting(256, "R, the rank of the random matrices", low=1, high=4096)
    targets: str | tuple[str, ...] = setting("all", "linear layers by the end of their name, or all")
    layers: int | tuple[int, ...] | None = declare_layers()
    projection_seed: int = setting(0, "seed of the random matrices; part of the model, not the run's seed", low=0)

    joint_meaning: ClassVar[JointMeaning] = "product"
    merges: ClassVar[bool] = True
    tensors: ClassVar[tuple[str, ...]] = (D, B)
    roles: ClassVar[Mapping[str, Role]] = {D: "lora_A", B: "lora_B"}

    @property
    def form(self) -> AdapterShape:
        """Shape of the pair b, d: rank 1, scale 1."""
        return AdapterShape(1, 1.0)

    def config(self, base: nn.Module) -> Any:
        """Return a `peft.VeraConfig`."""
        from peft import VeraConfig

        return VeraConfig(
            r=self.rank,
            target_modules=find_target_layers(base, self.targets, self.layers),
            projection_prng_key=self.projection_seed,
            save_projection=True,
        )

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Attach peft's VeRA, and convert its projections to the precision of the vectors."""
        super().attach(model, dtype)
        for layer in model.base.modules():
            for projection in (getattr(layer, "vera_A", None), getattr(layer, "vera_B", None)):
                if projection is not None and "default" in projection:
                    projection.update({"default": projection["default"].to(get_adapter_dtype(dtype))})

    def start(self, model: FederatedModel, seed: int) -> State:
        """Return d = 0.1 and b = 0."""
        shapes = self.layout(model).shapes
        return {name: value.reshape(shapes[name]) for name, value in super().start(model, seed).items()}

    def weight_changes(self, model: FederatedModel) -> WeightChanges:
        """Return a function that computes b * B (d * A) of each layer."""
        base: Any = model.base.get_base_model()  # type: ignore[operator]
        fixed: dict[str, tuple[Tensor, Tensor]] = {}
        for pair in self.layout(model).pairs:
            layer = base.get_submodule(pair.module)
            vera_a = layer.vera_A["default"][:, : layer.in_features].double()
            fixed[pair.module] = vera_a, layer.vera_B["default"][: layer.out_features].double()

        def changes(state: State, form: AdapterShape | None) -> dict[str, Tensor]:
            differences = {}
            for module, (vera_a, vera_b) in fixed.items():
                d, b = state[f"{module}.{D}"].double().flatten(), state[f"{module}.{B}"].double().flatten()
                differences[module] = b[:, None] * (vera_b @ (d[:, None] * vera_a))
            return differences

        return changes


part = Vera

"""AdaLoRA: updates as singular value decompositions, with more rank for layers that need it.

    y = W0 x + (alpha / r) P E Q x,   Q (r, in), P (out, r) random, E = 0 (r) at first;   P, E and Q are trained

Clients train and exchange all three (Zhang et al., arXiv 2303.10512). The server sees the factors B = P E and A = Q. It
computes the best factors of the exact mean dW* (flexlora; clients' directions need not match). P, E and Q are the
singular value decomposition of these. Then it allocates ranks: the largest singular values of all layers stay. Their
number falls from `rank` to `target_rank` per layer over `shrink_rounds`, as a cubic.

Deviations. The server allocates ranks by singular values of the aggregate, where the paper smooths the sensitivities of
one trainer. Nothing penalizes P and Q for leaving orthogonality, since each round's decomposition restores it. The
result is saved as plain LoRA with the ranks that the layers got.

Use it with `flexlora` if it is not known which layers need rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from fedpeft.models.layers import declare_layers, find_target_layers
from fedpeft.models.task import FederatedModel
from fedpeft.parts import setting
from fedpeft.peft.abilities import WeightChanges
from fedpeft.peft.adapter import AdapterShape, JointMeaning, Layout, State, TensorSpec
from fedpeft.peft.factor_view import FactorView
from fedpeft.peft.low_rank import LowRank
from fedpeft.peft.method import PeftMethod, draw_uniform

A, B, E = "lora_A", "lora_B", "lora_E"


@dataclass(frozen=True)
class AdaLora(PeftMethod):
    """Low-rank updates that give more rank to layers with large singular values."""

    rank: int = setting(8, "rank of each layer at first", low=1, high=1024)
    target_rank: int = setting(4, "mean rank of the layers in the end, at most `rank`", low=1, high=1024)
    shrink_rounds: int = setting(10, "rounds until the mean rank has fallen to target_rank", low=1)
    alpha: float = setting(32.0, "numerator of the scale alpha / rank", above=0)
    targets: str | tuple[str, ...] = setting("all", "linear layers by the end of their name, or all")
    layers: int | tuple[int, ...] | None = declare_layers()

    joint_meaning: ClassVar[JointMeaning] = "singular values"
    merges: ClassVar[bool] = True
    few_bits: ClassVar[bool] = False
    tensors: ClassVar[tuple[str, ...]] = (A, B, E)

    def config(self, base: nn.Module) -> Any:
        """Return a `peft.AdaLoraConfig`; peft's own allocation of ranks is not used."""
        from peft import AdaLoraConfig

        return AdaLoraConfig(
            init_r=self.rank,
            target_r=min(self.target_rank, self.rank),
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            target_modules=find_target_layers(base, self.targets, self.layers),
            total_step=1,
        )

    def settle(self, base: nn.Module) -> None:
        """Freeze the layers' ranks, which `peft` stores as parameters."""
        for name, parameter in base.named_parameters():
            if ".ranknum." in name:
                parameter.requires_grad_(False)

    @property
    def scale(self) -> float:
        """Scale of the update, as peft's layers compute it."""
        return self.alpha / (self.rank + 1e-5)

    def start(self, model: FederatedModel, seed: int) -> State:
        """Return P and Q uniform with standard deviation 0.02, and E zero."""
        state = super().start(model, seed)
        for name in state:
            if name.endswith((f".{A}", f".{B}")):
                draw_uniform(state, name, seed, 0.02 * 3**0.5)
            elif name.endswith(f".{E}"):
                state[name].zero_()
        return state

    def create_factor_view(self, layout: Layout) -> FactorView:
        """Create the view of P, E and Q as the factors P E and Q."""
        return SingularFactorView(self, layout)

    def changes(self, model: FederatedModel, state: State) -> dict[str, LowRank]:
        """Return the factors s P E and Q of each layer, at the layer's rank, at least 1."""
        products = {}
        for module in find_modules(state):
            energies = state[f"{module}.{E}"].flatten()
            kept = energies.nonzero().flatten() if bool(energies.any()) else torch.tensor([0])
            left = state[f"{module}.{B}"][:, kept] * energies[kept] * self.scale
            products[module] = LowRank(left, state[f"{module}.{A}"][kept])
        return products

    def weight_changes(self, model: FederatedModel) -> WeightChanges:
        """Return a function that computes s P E Q of each layer."""
        return lambda state, _: {m: product.to_dense().double() for m, product in self.changes(model, state).items()}


def find_modules(state: State) -> list[str]:
    """Return the paths of the adapted layers."""
    return [name.removesuffix(f".{E}") for name in state if name.endswith(f".{E}")]


@dataclass(frozen=True)
class SingularFactorView:
    """Conversion between P, E, Q and the factors P E, Q."""

    method: AdaLora
    parameters_layout: Layout

    @property
    def layout(self) -> Layout:
        """Layout of the factors."""
        roles = {A: "lora_A", B: "lora_B"}
        kept = [t for t in self.parameters_layout.tensors if not t.name.endswith(f".{E}")]
        specs = [TensorSpec(t.name, t.shape, roles.get(t.name.rpartition(".")[2], t.role), t.module) for t in kept]  # type: ignore[arg-type]
        return Layout(tuple(specs), AdapterShape(self.method.rank, self.method.alpha))

    def factors(self, state: State) -> State:
        """Convert parameters to factors: B = P E, and E is dropped."""
        factors = {name: tensor for name, tensor in state.items() if not name.endswith(f".{E}")}
        for module in find_modules(state):
            factors[f"{module}.{B}"] = state[f"{module}.{B}"] * state[f"{module}.{E}"].flatten()
        return factors

    def parameters(self, factors: State, before: State, round_number: int) -> State:
        """Split the columns of B into P and E; a rank without energy keeps its directions, so that it can recover."""
        after = dict(factors)
        for module in find_modules(before):
            columns = factors[f"{module}.{B}"]
            energies = columns.norm(dim=0)
            alive = energies > 0
            after[f"{module}.{B}"] = torch.where(
                alive, columns / energies.clamp_min(1e-30), before[f"{module}.{B}"].to(columns.dtype)
            )
            after[f"{module}.{E}"] = energies[:, None]
        self._allocate(after, round_number)
        return {name: after[name] for name in before}

    def _allocate(self, state: State, round_number: int) -> None:
        """Set all but the largest singular values of all layers to 0."""
        layers = find_modules(state)
        energies = torch.cat([state[f"{module}.{E}"].flatten() for module in layers])
        budget = self.get_budget(round_number) * len(layers)
        if budget < len(energies):
            threshold = energies.sort(descending=True).values[int(budget)]
            for module in layers:
                values = state[f"{module}.{E}"]
                state[f"{module}.{E}"] = torch.where(values > threshold, values, 0.0)

    def get_budget(self, round_number: int) -> float:
        """Return the mean number of ranks per layer after `round_number`."""
        method = self.method
        left = max(0.0, 1 - round_number / method.shrink_rounds) ** 3
        target = min(method.target_rank, method.rank)
        return target + (method.rank - target) * left


part = AdaLora

"""AdaMix: a bottleneck adapter with several down-projections; each pass trains a random one.

    y = f(x) + up(act(down_e(f(x)))),   e drawn anew for each adapter and pass in training
    y = f(x) + up(act(mean_e down_e(f(x))))   otherwise: merged, at the cost of one adapter

The adapter sits after the feed-forward sublayer of each adapted block (Wang et al., arXiv 2205.12410). There are
`experts` matrices down_e (dim, d), and one shared up (d, dim), which is 0 at first. A step makes two passes with draws
of their own and minimizes, as the authors' code does,

    loss(f_1) + consistency * (KL(sg p_2 || p_1) + KL(sg p_1 || p_2)) / 2,   sg: no gradient

for each prediction. With consistency=0 a step makes one pass and minimizes the task's loss alone. The weight is 1 in
the authors' classifiers and 100 in their language models. Merged, AdaMix has the paper's sizes: 0.9 M parameters in
BERT-base (dim 48), 0.8 M in RoBERTa-large (dim 16). Clients train and send all experts and the one up.

Experts are drawn from the run's seed, the round, the client and the step, in the order of passes and adapters. So all
executors draw equally, and the server can recompute the draws. With --strategy owned_mean the server averages each
expert by how often clients have trained it (in the first 1,000 steps of a round). With fedit the mean is plain, as
private sums need it: each client draws each expert about equally often, and sends undrawn experts unchanged.

Deviations. An expert that a step has not drawn has a gradient of zero, but Adam's momentum still moves it. As with
other bottlenecks the mean is not exact. Gradients per example are refused, because one expert serves all examples of a
pass. Preferences (dpo) are refused, because their loss is not a sum over examples.

Use it as a stronger bottleneck if the bytes of several experts are affordable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fedpeft.data.examples import Batch
from fedpeft.errors import ModelError
from fedpeft.machine import seeds
from fedpeft.models.checkpointing import remember
from fedpeft.models.dtypes import get_adapter_dtype, get_wide_dtype
from fedpeft.models.layers import declare_layers, replace
from fedpeft.models.task import FederatedModel, RowLosses, Task
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, State, TensorSpec
from fedpeft.peft.method import PeftMethod, PrivacyRoute
from fedpeft.peft.methods.bottleneck import draw_down, find_feedforward_ends
from fedpeft.peft.stacked_layers import StackedLayer, StackedLinear

PASSES = 2
"""Passes of a step that compares them."""

COUNTED = 1000
"""Steps of a round in which draws are counted; it bounds the server's work, since clients report their own steps."""

Draw = Callable[[int], Sequence[int]]
"""A function from the number of experts to the expert of each client in the pass; empty outside training."""


@dataclass(frozen=True)
class Consistent:
    """Objective of a step: the loss of one pass plus its divergence from a second pass."""

    weight: float

    def __call__(self, task: Task, model: FederatedModel, batch: Batch, offsets: Tensor | None) -> RowLosses:
        """Compute the losses by example from two passes."""
        one, other = model(batch), model(batch)
        shift = 0.0 if offsets is None else offsets.to(one)
        losses = task.losses(one + shift, batch)
        each = compute_symmetric_divergence(one, other)  # (B,), or (B, T) for the predicted tokens of a language model
        if each.dim() > 1:
            words: Any = model
            each = (each * words.get_counted_labels(batch)[1]).sum(1)
        return RowLosses(losses.sums + self.weight * each, losses.counts, losses.correct)


def compute_symmetric_divergence(one: Tensor, other: Tensor) -> Tensor:
    """Compute (KL(sg q || p) + KL(sg p || q)) / 2 between the distributions of two logits (..., C), as (...,)."""
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    toward = (functional.kl_div(a, b.detach(), reduction="none", log_target=True).sum(-1) for a, b in ((p, q), (q, p)))
    return sum(toward, torch.zeros((), dtype=one.dtype, device=one.device)) / 2


class Mixture(StackedLayer):
    """The last frozen projection of a sublayer, with the adapters of K clients, or of one, behind it.

    down: weight ([K,] experts * dim, d) and bias, expert after expert; up: weight ([K,] d, dim) and bias.
    """

    def __init__(self, layer: nn.Module, sizes: tuple[int, int, int], act: str, dtype: torch.dtype, clients: int = 0):
        """Create the adapters behind `layer`.

        Args:
            layer: the frozen projection.
            sizes: number of experts, width `dim` of the bottleneck, and width d of the output.
            act: name of the activation function.
            dtype: dtype of the adapters.
            clients: number of clients; 0: one client without a leading axis.
        """
        super().__init__(max(clients, 1))
        self.experts, dim, width = sizes
        self.base_layer = layer
        down, up = nn.Linear(width, self.experts * dim, dtype=dtype), nn.Linear(dim, width, dtype=dtype)
        self.down: nn.Module = StackedLinear(down, clients) if clients else down
        self.up: nn.Module = StackedLinear(up, clients) if clients else up
        self.act = getattr(functional, act)
        self._draw: Draw | None = None

    def draw_from(self, draw: Draw) -> None:
        """Set the function that draws experts in each pass."""
        self._draw = draw

    def select_experts(self, parameter: Any, entries: int, chosen: Sequence[int]) -> Tensor:
        """Return each client's `chosen` expert, or the mean of its experts if none is chosen.

        Args:
            parameter: ([K,] experts * dim, ...).
            entries: number of dimensions of the parameter without the clients' one.
            chosen: index of each client's expert; empty: average them.

        Returns:
            (K, dim, ...).
        """
        shape = parameter.shape[-entries:]
        each = parameter.reshape(-1, self.experts, shape[0] // self.experts, *shape[1:])[: self.active]
        if not chosen:
            mean: Tensor = each.mean(1)
            return mean
        return torch.stack([client[expert] for client, expert in zip(each, chosen, strict=True)])

    def forward(self, x: Tensor) -> Tensor:
        """(K * b, T, in) to (K * b, T, d); computed in the adapter's precision."""
        y: Tensor = self.base_layer(x)
        chosen = remember(self, lambda: self._draw(self.experts) if self._draw else ())
        weight, bias = (self.select_experts(p, n, chosen) for p, n in ((self.down.weight, 2), (self.down.bias, 1)))
        seen = self.split_by_client(y.to(weight.dtype))
        hidden = self.act(torch.baddbmm(bias.unsqueeze(1), seen, weight.mT))
        added: Tensor = self.up(hidden)
        return y + added.reshape(y.shape).to(y.dtype)


@dataclass(frozen=True)
class AdaMix(PeftMethod):
    """Bottleneck adapters that draw their down-projection anew in each pass and average them in the end."""

    dim: int = setting(16, "width of the bottleneck", low=1, high=4096)
    experts: int = setting(4, "down-projections of each adapter", low=1, high=64)
    activation: str = setting(
        "gelu", "activation function between down and up", choices=("relu", "gelu", "silu", "tanh")
    )
    consistency: float = setting(1.0, "weight of the divergence between two passes; 0: one pass", low=0)
    layers: int | tuple[int, ...] | None = declare_layers()

    batched: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False
    privacy: ClassVar[PrivacyRoute] = "refused"
    tensors: ClassVar[tuple[str, ...]] = ("down.weight", "down.bias", "up.weight", "up.bias")

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Wrap the last projection of the feed-forward sublayers."""
        ends = find_feedforward_ends(model.base, self.layers)
        if not ends:
            raise ModelError(
                f"FP4057 adamix finds no feed-forward sublayers in {type(model.base).__name__}; use lora or ia3"
            )
        for path in ends:
            layer: Any = model.base.get_submodule(path)
            sizes = (self.experts, self.dim, layer.out_features)
            mixture = Mixture(layer, sizes, self.activation, get_adapter_dtype(dtype))
            replace(model.base, path, mixture.to(layer.weight.device))
        model.objective = self._objective

    @property
    def _objective(self) -> Consistent | None:
        return Consistent(self.consistency) if self.consistency and self.experts > 1 else None

    def compute_owned_shares(self, layout: Layout, seed: int, round_number: int, client: int, steps: int) -> State:
        """Return the share of passes that drew each expert.

        The shape is (experts * dim, 1) for weights and (experts * dim,) for biases.
        """
        if not steps:  # a private client does not report them, and counts as if it had trained all experts equally
            return {}
        modules = [t.module for t in layout.tensors if t.name.endswith(".down.weight")]
        counts, passes = torch.zeros(len(modules), self.experts), PASSES if self._objective else 1
        counted = min(steps, COUNTED)
        for step in range(counted):
            generator = seeds.create_generator(seed, seeds.ROUTES, round_number, client, step)
            for draw in range(passes * len(modules)):
                counts[draw % len(modules), int(generator.integers(self.experts))] += 1
        shares = (counts / (passes * counted)).repeat_interleave(self.dim, dim=1)
        weights = {f"{module}.down.weight": share[:, None] for module, share in zip(modules, shares, strict=True)}
        return weights | {f"{module}.down.bias": share for module, share in zip(modules, shares, strict=True)}

    def start(self, model: FederatedModel, seed: int) -> State:
        """Return down-projections uniform in +-1/sqrt(d), different for each expert, and everything else zero."""
        return draw_down(super().start(model, seed), self.tensors, seed)

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """Put K clients' adapters behind each sublayer."""
        dtype = get_wide_dtype(next(model.base.parameters()).dtype)
        for spec in tensors:
            if spec.name.endswith(".down.weight"):
                layer = model.base.get_submodule(spec.module)
                sizes = (self.experts, self.dim, spec.shape[1])
                replace(model.base, spec.module, Mixture(layer, sizes, self.activation, dtype, clients))
        model.objective = self._objective


part = AdaMix

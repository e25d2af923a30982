"""Training in a random subspace: a vector of few numbers moves all parameters of another method.

    theta = theta_0 + P z,   z (dimension,) is trained and sent, P (D, dimension) is drawn from a seed

The smallest dimension that reaches nearly the gain of all D parameters is the intrinsic dimension of the task (Li et
al., arXiv 1804.08838; Aghajanyan et al., arXiv 2012.13255; abstracts only). `python -m experiments.intrinsic_dimension`
searches for it.

Each row of P has one entry, +1 or -1, at a random place: an entry of theta follows one number of z. Each number of z
moves nearly equally many entries, so the columns are orthogonal and of nearly one length. With dimension=D, P is a
signed permutation, and plain SGD trains what the method itself would. Everyone draws P and theta_0 from `draw`,
so neither is stored nor sent; in memory P needs 4 bytes an entry of theta.

Deviations. The papers project densely, sparsely or by the Fastfood transform, and scale P to unit length. Su et al.
(Uni-LoRA, arXiv 2506.00799, abstract only) partition LoRA's parameters at random, as here. P is not scaled to unit
length here, so that with adamw an entry of theta moves by the learning rate in a step, as in the method itself. The
head is trained beside z. With of=full, weights that several layers share stay frozen, and so does a language model's
output layer.

Rule: the plain mean of z. Since theta is linear in z, it is exact for all methods whose plain mean is. The saved result
contains z and the head. Only the sequential executor trains it.

Use it to measure how many numbers a task needs, or if only a few hundred numbers may travel.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedpeft.errors import ConfigError, ModelError
from fedpeft.machine import seeds
from fedpeft.models.dtypes import get_adapter_dtype
from fedpeft.models.layers import find_blocks, find_lowest_block, is_single_stack, unwrap
from fedpeft.models.quantized_base import Precision
from fedpeft.models.task import FederatedModel, find_trainable
from fedpeft.parts import setting
from fedpeft.parts.families import PEFT_METHODS
from fedpeft.peft.hybrid import Hybrid
from fedpeft.peft.method import PeftMethod, PrivacyRoute

Z = "subspace"
"""Name of the trained vector."""


class Projection(nn.Module):
    """A parameter's place in the subspace: theta = theta_0 + P z for its entries."""

    entries: Tensor

    def __init__(self, home: nn.Module, entries: Tensor) -> None:
        """Read z from `home`; `entries` has the parameter's shape, and indexes [z, -z]."""
        super().__init__()
        self._home = [home]  # in a list, so that z has one place in the model
        self.register_buffer("entries", entries, persistent=False)

    def forward(self, start: Tensor) -> Tensor:
        """Return the parameter's value, in the dtype of its start."""
        z: Tensor = getattr(self._home[0], Z)
        moved = torch.cat([z, -z]).index_select(0, self.entries.flatten())
        return start + moved.view(self.entries.shape).to(start.dtype)


def draw_entries(numbers: int, dimension: int, seed: int) -> Tensor:
    """Draw for each of `numbers` parameters which entry of [z, -z] moves it, int32 (numbers,)."""
    generator = seeds.create_torch_generator(seed, Z)
    places = torch.randperm(numbers, generator=generator).remainder_(dimension)
    signs = torch.randint(2, (numbers,), generator=generator)
    return places.add_(signs, alpha=dimension).to(torch.int32)


@dataclass(frozen=True)
class Subspace(PeftMethod):
    """A vector that moves all parameters of another method through a random projection."""

    dimension: int = setting(1000, "numbers of the trained vector", low=1, high=100_000_000)
    of: str = setting(
        "lora",
        "method that has the parameters: one that can be joined, several joined by +, or full",
        nested=PEFT_METHODS,
    )
    draw: int = setting(0, "seed of the projection and of the method's start; part of the model", low=0)

    in_peft: ClassVar[bool] = False
    tensors: ClassVar[tuple[str, ...]] = (Z,)

    def __post_init__(self) -> None:
        """Refuse methods whose parameters mean something only together, or that change more than layers.

        Raises:
            ConfigError: names the method.
        """
        inner = self.inner
        if not (isinstance(inner, Hybrid) or inner.composes or inner.whole_model) or inner.reads:
            raise ConfigError(
                f"FP1632 of={self.of!r} of subspace can't be trained in a subspace; use full, a method that can be "
                "joined, such as lora, ia3, bitfit or bottleneck, or several joined by +"
            )

    @cached_property
    def inner(self) -> PeftMethod:
        """The method that has the parameters."""
        return PEFT_METHODS.build(self.of)

    @property
    def base_precision(self) -> Precision:
        """Precision of the method's base."""
        return self.inner.base_precision

    @property
    def few_bits(self) -> bool:  # type: ignore[override]
        """Whether the method works beside layers in few bits."""
        return self.inner.few_bits

    @property
    def privacy(self) -> PrivacyRoute:  # type: ignore[override]
        """The route through the whole model, unless the method has none."""
        return "refused" if self.inner.privacy == "refused" else "vmap"

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Attach the method, and let z move its parameters.

        Raises:
            ModelError: the dimension exceeds the number of parameters.
        """
        self.inner.attach(model, dtype)
        start = self.inner.start(model, self.draw)
        modules = [t.module for t in self.inner.layout(model).tensors if t.role != "head"]
        firsts = {id(p): start[name] for name, p in find_trainable(model).items()}
        fixed = _find_fixed_parameters(model.base)
        moved = [
            (module, name, parameter)
            for module in model.base.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.requires_grad and id(parameter) not in fixed
        ]
        numbers = sum(p.numel() for _, _, p in moved)
        if self.dimension > numbers:
            raise ModelError(
                f"FP4186 dimension={self.dimension} of subspace exceeds the {numbers} parameters of {self.of}; give at "
                f"most {numbers}"
            )
        home = _find_home(model, modules)
        home.register_parameter(Z, nn.Parameter(torch.zeros(self.dimension, dtype=get_adapter_dtype(dtype))))
        home.to(next(model.base.parameters()).device)
        entries = torch.split(draw_entries(numbers, self.dimension, self.draw), [p.numel() for _, _, p in moved])
        for (module, name, parameter), some in zip(moved, entries, strict=True):
            parameter.data.copy_(firsts[id(parameter)].reshape(parameter.shape))
            projection = Projection(home, some.view(parameter.shape).to(parameter.device))
            parametrize.register_parametrization(module, name, projection, unsafe=True)
        for name, parameter in model.base.named_parameters():
            parameter.requires_grad_(name.rpartition(".")[2] == Z)


def _find_fixed_parameters(base: nn.Module) -> set[int]:
    """Return the ids of parameters that several layers share, and of those of a language model's output layer."""
    places = Counter(id(p) for module in base.modules() for p in module.parameters(recurse=False))
    find: Any = getattr(unwrap(base), "get_output_embeddings", lambda: None)
    layer = find()
    output = map(id, layer.parameters()) if isinstance(layer, nn.Module) else ()
    return {p for p, count in places.items() if count > 1}.union(output)


def _find_home(model: FederatedModel, modules: list[str]) -> nn.Module:
    """Return the module that holds z: the lowest adapted block, so that nothing below it is computed with gradients.

    It is the base itself if adapted modules are outside the blocks, or the base has two stacks of them.
    """
    base: nn.Module = unwrap(model.base)
    if not is_single_stack(base):
        return base
    path, stack = find_blocks(base)
    inside = all(module.startswith(f"{path}.") for module in modules)
    return stack[find_lowest_block(base, modules)] if inside else base


part = Subspace

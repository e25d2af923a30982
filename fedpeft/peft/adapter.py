"""Adapter states, which are named tensors that clients train and exchange, and the layout that describes each tensor.

Shapes: LoRA's A is (rank, in), B is (out, rank); an adapted layer computes `W x + scale * B A x`, scale = alpha / rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

State = dict[str, Tensor]
"""Tensors by canonical name, e.g. `encoder.layer.0.attention.self.query.lora_A.weight`."""

Role = Literal["lora_A", "lora_B", "head", "prompt", "plain"]
"""What a tensor is in its layer.

`prompt` tensors have one row per position; a client of smaller size holds the first rows. `plain` is a parameter
without a bilinear partner, such as a bias, a scaling vector or a weight.
"""

JointMeaning = Literal["product", "singular values", "Gram matrix", "all ranks"]
"""What several tensors of a layer mean together.

- product: of two factors; the product of their means is not the mean product.
- singular values: three factors are a singular value decomposition.
- Gram matrix: a matrix G stands for G^T G.
- all ranks: each rank of a product holds a part of the base's weight, so none may be dropped.
"""


@dataclass(frozen=True)
class TensorSpec:
    """One trainable tensor: its canonical name, shape, role, and the module of the base model it belongs to."""

    name: str
    shape: tuple[int, ...]
    role: Role
    module: str

    @property
    def numel(self) -> int:
        """Number of parameters."""
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class LoraPair:
    """The two factors of one adapted layer of shape (out, in): names of A (rank, in) and B (out, rank)."""

    module: str
    A: str
    B: str
    out_features: int
    in_features: int


@dataclass(frozen=True)
class AdapterShape:
    """Rank and alpha of a client's LoRA factors, or the length of its prompt.

    Attributes:
        rank: at least 1; for prompts, their length.
        alpha: above 0; for prompts, equal to `rank`, so that the scale is 1.
    """

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """The factor before B A."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Layout:
    """All trainable tensors in a fixed order; `form` is the rank and alpha of the LoRA factors (None: no LoRA)."""

    tensors: tuple[TensorSpec, ...]
    form: AdapterShape | None = None

    @cached_property
    def by_name(self) -> Mapping[str, TensorSpec]:
        """The specs by canonical name."""
        return {t.name: t for t in self.tensors}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The canonical names, in order."""
        return tuple(t.name for t in self.tensors)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, in order; payloads are checked against them."""
        return {t.name: t.shape for t in self.tensors}

    @cached_property
    def pairs(self) -> tuple[LoraPair, ...]:
        """The LoRA layers, in order."""
        factors: dict[str, dict[str, TensorSpec]] = {}
        for t in self.tensors:
            if t.role in ("lora_A", "lora_B"):
                factors.setdefault(t.module, {})[t.role] = t
        return tuple(
            LoraPair(m, f["lora_A"].name, f["lora_B"].name, f["lora_B"].shape[0], f["lora_A"].shape[1])
            for m, f in factors.items()
        )

    @property
    def numel(self) -> int:
        """Number of trainable parameters."""
        return sum(t.numel for t in self.tensors)

    def get_form(self, rank: int, like: AdapterShape | None = None) -> AdapterShape:
        """Return the adapter shape with a `rank` at the layout's scale, bit for bit equal on every machine.

        Args:
            rank: at least 1.
            like: a shape whose scale is kept if it differs from the layout's by more than rounding; None: use the
                layout's.
        """
        assert self.form is not None
        whole = self.form
        if like is not None and not math.isclose(like.scale, whole.scale, rel_tol=1e-9):
            whole = like
        return whole if rank == whole.rank else AdapterShape(rank, whole.scale * rank)

    def replace_form(self, form: AdapterShape | None) -> Layout:
        """Return the layout of the same layers at the LoRA rank and alpha of `form`; None changes nothing."""
        if form is None or form == self.form:
            return self
        resized = {
            "lora_A": lambda shape: (form.rank, *shape[1:]),
            "lora_B": lambda shape: (*shape[:-1], form.rank),
            "prompt": lambda shape: (form.rank, *shape[1:]),
        }
        tensors = tuple(TensorSpec(t.name, resized.get(t.role, tuple)(t.shape), t.role, t.module) for t in self.tensors)
        return Layout(tensors, form)

    def select(self, names: Iterable[str]) -> Layout:
        """Return the layout of only the tensors in `names`, in the same order."""
        wanted = set(names)
        return Layout(tuple(t for t in self.tensors if t.name in wanted), self.form)


def create_zeros(layout: Layout) -> State:
    """Create a state of zeros in fp32 for a layout."""
    return {t.name: torch.zeros(t.shape) for t in layout.tensors}


def subtract_states(after: State, before: State) -> State:
    """Compute `after - before` for the names of `after`."""
    return {name: tensor - before[name] for name, tensor in after.items()}


def round_to_precision(state: State, precision: str) -> State:
    """Round a state to the values that a client holds in `precision`, "fp32" or "bf16"; the dtypes stay."""
    if precision == "fp32":
        return state
    return {name: tensor.to(torch.bfloat16).to(tensor.dtype) for name, tensor in state.items()}


def compute_norm(state: State) -> float:
    """Compute the Euclidean norm over all tensors in fp64; the order of the tensors does not matter."""
    return math.sqrt(math.fsum(float(t.double().square().sum()) for t in state.values()))

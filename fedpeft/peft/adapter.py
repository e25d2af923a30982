"""What is trained and exchanged: named tensors, and the layout that says what each of them is.

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
"""`prompt`: one row for each position, of which a client of smaller size holds the first ones; `plain`: a parameter
that has no bilinear partner (a bias, a scaling vector, a weight)."""


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
    """The form in which a client holds LoRA factors: `rank` (at least 1) and `alpha` (above 0); for prompts, `rank` is
    their length and the scale is 1."""

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
        """Shapes by name, in order: what a payload is checked against."""
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
        """Return the one form of a `rank` at the layout's scale, bit for bit the same wherever it is computed.

        Args:
            rank: at least 1.
            like: a form whose scale is kept if it differs from the layout's by more than rounding; None: none does.
        """
        assert self.form is not None
        whole = self.form
        if like is not None and not math.isclose(like.scale, whole.scale, rel_tol=1e-9):
            whole = like
        return whole if rank == whole.rank else AdapterShape(rank, whole.scale * rank)

    def replace_form(self, form: AdapterShape | None) -> Layout:
        """The same layers at another LoRA rank and alpha."""
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
        """Only the tensors in `names`, order kept."""
        wanted = set(names)
        return Layout(tuple(t for t in self.tensors if t.name in wanted), self.form)


def create_zeros(layout: Layout) -> State:
    """A state of zeros, fp32."""
    return {t.name: torch.zeros(t.shape) for t in layout.tensors}


def subtract_states(after: State, before: State) -> State:
    """`after - before`, for the names of `after`."""
    return {name: tensor - before[name] for name, tensor in after.items()}


def round_to_precision(state: State, precision: str) -> State:
    """The values that a client which holds its adapter in `precision` ("fp32" or "bf16") has of `state`."""
    if precision == "fp32":
        return state
    return {name: tensor.to(torch.bfloat16).to(tensor.dtype) for name, tensor in state.items()}


def compute_norm(state: State) -> float:
    """Euclidean norm over all tensors, in fp64; the order of the tensors does not matter."""
    return math.sqrt(math.fsum(float(t.double().square().sum()) for t in state.values()))

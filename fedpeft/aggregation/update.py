"""Inputs of strategies: a client's update, weighted sums of updates, and the updates of a cohort."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedpeft.errors import ConfigError
from fedpeft.parts import name_of
from fedpeft.peft.adapter import AdapterShape, Layout, Role, State

if TYPE_CHECKING:
    from fedpeft.peft.low_rank import LowRank


@dataclass(frozen=True)
class Update:
    """One client's update, as the server decodes it.

    Attributes:
        client: client id.
        weight: aggregation weight before normalization, above 0 (number of examples, or 1 for uniform weighting).
        form: the client's LoRA rank and alpha; None without LoRA.
        received: the state the client started from, bit for bit (the server decodes its own downlink payload).
        delta: trained minus received, only for the tensors trained this round.
        staleness: steps that the server has taken since it sent the state; 0 in a synchronous round.
        owned: by name, how much of each entry the client has trained, in a shape that broadcasts
            (`DrawsParts.compute_owned_shares`); of other names: all of it.
        ranks: of the global factors, that the client holds, in its order; empty: the leading ones.
        answer: to the question of the rule to each client of a round (`AsksClients`), fp64.
    """

    client: int
    weight: float
    form: AdapterShape | None
    received: State
    delta: State
    staleness: int = 0
    ranks: tuple[int, ...] = ()
    owned: State = field(default_factory=dict)
    answer: State = field(default_factory=dict)

    def get_trained(self, name: str) -> Tensor:
        """Return the tensor after local training, or as received if it was not trained."""
        received = self.received[name]
        return received + self.delta[name] if name in self.delta else received

    @property
    def scale(self) -> float:
        """Scale s_k = alpha_k / r_k; 1 without LoRA."""
        return 1.0 if self.form is None else self.form.scale


OWNED = "owned/"
"""Prefix of the names of the owners' summed weights."""


@dataclass
class Fold:
    """A running weighted sum of states in fp64: `sums[name]` = sum_k w_k x_k, `weight` = sum_k w_k."""

    sums: State = field(default_factory=dict)
    weight: float = 0.0
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)

    def add(self, state: State, weight: float) -> None:
        """Add `weight * state`; every call must have the same names and shapes.

        Raises:
            ConfigError: names or shapes differ from those of the first call.
        """
        if self.sums and state.keys() != self.sums.keys():
            name = min(state.keys() ^ self.sums.keys())
            raise ConfigError(
                f"FP1028 the strategy's contributions contain {name} for some clients but not for others; return "
                "the same tensors for all clients"
            )
        for name, tensor in state.items():
            if name in self.sums and tensor.shape != self.sums[name].shape:
                shapes = f"{tuple(tensor.shape)} after {tuple(self.sums[name].shape)}"
                raise ConfigError(f"FP1029 the strategy's contributions contain {name} in different shapes: {shapes}")
            if name not in self.sums:
                self.sums[name] = torch.zeros(tensor.shape, dtype=torch.float64)
                self.dtypes[name] = tensor.dtype
            self.sums[name].add_(tensor, alpha=weight)
        self.weight += weight

    def mean(self) -> State:
        """Return the weighted mean in the dtype of the added states."""
        return {name: (total / self.weight).to(self.dtypes[name]) for name, total in self.sums.items()}

    def add_owned(self, state: State, owned: State, weight: float) -> None:
        """Add `weight * state` and `weight * owned`, the share of each entry that the client owns, 0 to 1."""
        self.add(state | {OWNED + name: tensor for name, tensor in owned.items()}, weight)

    def compute_owner_mean(self) -> State:
        """Return the mean of each entry over its owners, after `add_owned`; 0 if nobody owns it."""
        owned = {name.removeprefix(OWNED): tensor for name, tensor in self.sums.items() if name.startswith(OWNED)}
        return {name: (self.sums[name] / own.clamp_min(1e-30)).to(self.dtypes[name]) for name, own in owned.items()}


def check_made(rule: object, made: State, state: State, whole: Iterable[str], noun: str = "strategy") -> None:
    """Refuse tensors of a rule that have other shapes than the state, or are missing.

    Args:
        rule: a strategy or another part, which may be a plugin's.
        made: tensors that the rule returned; names that the state lacks are not checked.
        state: the global state.
        whole: names that `made` must contain.
        noun: type of the rule, for the error.

    Raises:
        ConfigError: names the tensor and the fault.
    """
    name = f"the {noun} {name_of(type(rule))}"
    for tensor in made.keys() & state.keys():
        if made[tensor].shape != state[tensor].shape:
            raise ConfigError(
                f"FP1030 {name} returned {tensor} of shape {tuple(made[tensor].shape)}; the adapter has "
                f"{tuple(state[tensor].shape)}"
            )
    if missing := sorted(set(whole) - made.keys()):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(f"FP1031 {name} leaves out {missing[0]}{more}, which the next state needs")


def describe_nonfinite(strategy: object, state: State) -> str:
    """Return a clause about the first tensor with NaN or infinite entries; empty: there is none."""
    broken = next((name for name, tensor in state.items() if not bool(tensor.isfinite().all())), "")
    return broken and f"the strategy {name_of(type(strategy))} makes {broken} NaN or infinite"


@dataclass(frozen=True)
class Gathered:
    """The next global factors of one layer, and its residual for the frozen base (None: there is none)."""

    A: Tensor
    B: Tensor
    residual: LowRank | None = None


@dataclass(frozen=True)
class Cohort:
    """The clients whose updates arrived, in the order of their ids.

    Attributes:
        updates: updates with the tensors of one layer; each pass may decode them anew.
        shares: p_k, the weight of each update; they sum to 1, or to less if a robust rule shrinks some.
        round: counted from 1.
        seed: the run's seed; a rule that draws numbers seeds its generator from it, the round and the layer.
    """

    updates: Sequence[Update]
    shares: tuple[float, ...]
    round: int
    seed: int

    def replace_shares(self, shares: tuple[float, ...]) -> Cohort:
        """Return the same updates with other shares."""
        return replace(self, shares=shares)


def normalize_weights(weights: Sequence[float]) -> tuple[float, ...]:
    """Divide weights by their sum, which gives p_k.

    Raises:
        ConfigError: no weights, or a weight that is not above 0.
    """
    if not weights or min(weights) <= 0:
        raise ConfigError("FP1032 a gather rule needs at least one update, and every update a weight above 0")
    total = sum(weights)
    return tuple(w / total for w in weights)


def select_leading_ranks(state: State, layout: Layout, form: AdapterShape | None, carrier: Role = "lora_B") -> State:
    """Return a copy of `state` with the first r ranks of all factors, and the first r positions of prompts.

    The factor of the role `carrier` is multiplied by s / s_k. So the client's effective weight s_k B_k A_k is that of
    the global adapter's leading ranks, whatever its alpha.
    """
    if form is None or layout.form is None or form == layout.form:
        return {name: tensor.clone() for name, tensor in state.items()}
    sent = {name: state[name].clone() for name in state}
    for t in layout.tensors:
        if t.role in ("lora_A", "lora_B"):
            rows = state[t.name][: form.rank] if t.role == "lora_A" else state[t.name][:, : form.rank]
            sent[t.name] = rows * (layout.form.scale / form.scale) if t.role == carrier else rows.clone()
        elif t.role == "prompt":
            sent[t.name] = state[t.name][: form.rank].clone()
    return sent


def pad_ranks(tensor: Tensor, like: Tensor) -> Tensor:
    """Append zeros to each axis of `tensor`, up to the shape of `like`, for the ranks that it lacks."""
    missing = [(0, whole - part) for part, whole in zip(tensor.shape, like.shape, strict=True)]
    return torch.nn.functional.pad(tensor, [n for pair in reversed(missing) for n in pair])


def compute_weighted_sum(tensors: Iterable[Tensor], weights: Iterable[float]) -> Tensor:
    """Return sum_k w_k x_k in the dtype of the tensors (at least one), accumulated in fp64."""
    total, dtype = torch.zeros(()), torch.float32
    for i, (tensor, weight) in enumerate(zip(tensors, weights, strict=True)):
        dtype = tensor.dtype
        total = tensor.double() * weight if i == 0 else total.add_(tensor, alpha=weight)
    return total.to(dtype)

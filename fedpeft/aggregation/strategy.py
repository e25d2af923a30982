"""What an aggregation strategy is: pure mathematics, no sockets, no Flower, no files.

A strategy says per client what is sent down and what is trained, and per round how updates become the next global
state. There are two kinds. A *linear* rule is a weighted mean of contributions: updates are folded in one at a time,
memory does not depend on the number of clients, and server optimizers and user-level privacy compose with it. A
*round* rule needs all updates of a round. Nearly all of them *gather*: they need every client's factors of one layer
at once (SVD, stacking, Krum), and are called one layer at a time, with a sequence that decodes the waiting payloads.

The target that every LoRA rule is judged by, with s_k = alpha_k / r_k and weights p_k that sum to 1:

    dW* = sum_k p_k s_k B_k A_k
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.errors import ConfigError
from fedpeft.parts import Family
from fedpeft.peft.adapter import ClientForm, Layout, LoraPair, Role, State, TensorSpec
from fedpeft.peft.low_rank import LowRank as LowRank
from fedpeft.peft.low_rank import inner_products, stack, truncated_svd


@dataclass(frozen=True)
class Update:
    """What the server knows of one client's work in a round.

    Attributes:
        client: client id.
        weight: unnormalised aggregation weight, above 0 (rows, or 1 for uniform weighting).
        form: the client's LoRA rank and alpha; None without LoRA.
        received: the state the client started from, bit for bit (the server decodes its own downlink payload).
        delta: trained minus received, only for the tensors trained this round.
        staleness: steps that the server has taken since it sent the state; 0 in a synchronous round.
    """

    client: int
    weight: float
    form: ClientForm | None
    received: State
    delta: State
    staleness: int = 0

    def trained(self, name: str) -> Tensor:
        """The tensor after local training (as received where it was not trained)."""
        received = self.received[name]
        return received + self.delta[name] if name in self.delta else received

    @property
    def scale(self) -> float:
        """s_k = alpha_k / r_k; 1 without LoRA."""
        return 1.0 if self.form is None else self.form.scale


@dataclass
class Fold:
    """A running weighted sum of states, in fp64: `sums[name]` = sum_k w_k x_k, `weight` = sum_k w_k."""

    sums: State = field(default_factory=dict)
    weight: float = 0.0
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)

    def add(self, state: State, weight: float) -> None:
        """Add `weight * state`; every call must carry the same names and shapes."""
        for name, tensor in state.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros(tensor.shape, dtype=torch.float64)
                self.dtypes[name] = tensor.dtype
            self.sums[name].add_(tensor, alpha=weight)
        self.weight += weight

    def mean(self) -> State:
        """The weighted mean, in the dtype of what was added."""
        return {name: (total / self.weight).to(self.dtypes[name]) for name, total in self.sums.items()}


@dataclass(frozen=True)
class Gathered:
    """The next global factors of one layer, and what goes beside it into the frozen base (None: nothing)."""

    A: Tensor
    B: Tensor
    residual: LowRank | None = None


@dataclass(frozen=True)
class Cohort:
    """The clients whose updates arrived, in the order of their ids.

    Attributes:
        updates: they may be decoded anew at each pass, and hold only the tensors of the layer at hand.
        shares: p_k, the weight of each update; they sum to 1 over the updates present (to less where a robust rule
            has shrunk some).
        round: counted from 1.
        seed: the run's seed for aggregation; a rule that draws numbers seeds its generator from it, the round and
            the layer.
    """

    updates: Sequence[Update]
    shares: tuple[float, ...]
    round: int
    seed: int

    def with_shares(self, shares: tuple[float, ...]) -> Cohort:
        """The same updates with other shares."""
        return replace(self, shares=shares)


class Strategy:
    """One aggregation rule. Subclasses are frozen dataclasses; their fields are the user's settings."""

    mixed_ranks: ClassVar[bool] = False
    """Whether clients may hold different ranks and alphas."""

    new_factors: ClassVar[bool] = False
    """Whether the rule makes new factors each round, in which what was remembered of the old ones has no meaning."""

    needs_lora: ClassVar[bool] = True
    """Whether the rule is only defined for LoRA factors; False: any PEFT method."""

    @property
    def asynchronous(self) -> int:
        """How many updates the server waits for, while other clients go on training; 0: for the whole cohort."""
        return 0

    def check(self, layout: Layout, forms: Iterable[ClientForm | None]) -> None:
        """Refuse what the rule does not support, with the reason.

        Raises:
            ConfigError: no LoRA factors, different forms, or a client of a higher rank than the global adapter.
        """
        name = type(self).__name__
        if self.needs_lora and not layout.pairs:
            raise ConfigError(f"{name} is defined for LoRA factors only; use the peft method lora, or strategy fedit")
        for form in set(forms) - {None, layout.form}:
            if not self.mixed_ranks:
                raise ConfigError(f"{name} needs the same rank and alpha at all clients; flexlora takes mixed ranks")
            if form is not None and layout.form is not None and form.rank > layout.form.rank:
                raise ConfigError(f"a client's rank {form.rank} exceeds the global rank {layout.form.rank}; raise it")

    def start(self, state: State, layout: Layout, seed: int) -> State:
        """The initial global state; by default the PEFT method's own initialisation."""
        return state

    def private(self, layout: Layout) -> frozenset[str]:
        """Names of the tensors that each client keeps for itself, from their common start; by default none."""
        return frozenset()

    def trained(self, layout: Layout, round: int) -> frozenset[str]:
        """Names of the tensors that clients train in `round` (counted from 1); by default all."""
        return frozenset(layout.names)

    def dispatch(self, state: State, layout: Layout, form: ClientForm | None, round: int) -> State:
        """A copy of what a client that holds `form` is sent; by default the leading ranks of the global state."""
        return leading_ranks(state, layout, form)

    def submitted(self, delta: State, layout: Layout, round: int) -> State:
        """What of its delta a client hands in (its half of the rule, before the codec); by default all of it."""
        return delta

    def next_form(self, update: Update, layout: Layout) -> ClientForm | None:
        """The form the client holds from the next round on; by default the one it has."""
        return update.form


class LinearStrategy(Strategy):
    """A weighted mean of contributions."""

    def contribution(self, update: Update, state: State, layout: Layout) -> State:
        """What one client adds to the mean, in the shapes of the global `state`; by default its delta.

        User-level privacy clips this, not the raw delta: a rescaling by mixed alphas then can't exceed the bound.
        """
        return update.delta

    def fold(self, total: Fold, update: Update, state: State, layout: Layout) -> None:
        """Add one client's contribution with its weight."""
        total.add(self.contribution(update, state, layout), update.weight)

    def pseudo_gradient(self, total: Fold, layout: Layout) -> State:
        """The direction that the server optimizer steps along; by default the weighted mean of the contributions."""
        return total.mean()

    def finish(self, state: State, layout: Layout, round: int) -> State:
        """Post-processing of the next global state, free under privacy; by default none."""
        return state


@dataclass(frozen=True)
class Aggregate:
    """The next global state, and by module what goes beside it into the frozen base."""

    state: State
    residuals: dict[str, LowRank]


Read = Callable[[tuple[str, ...]], Sequence[Update]]
"""All updates of the round in the order of client ids, holding only the named tensors (those trained this round)."""


class RoundStrategy(Strategy, ABC):
    """A rule that needs all updates of a round before it can say anything."""

    @property
    def fills_base(self) -> bool:
        """Whether the rule, as it is set, puts a residual into the base; by default if a remainder is kept."""
        return getattr(self, "remainder", "drop") == "keep"

    @abstractmethod
    def aggregate(self, state: State, layout: Layout, read: Read, round: int, seed: int) -> Aggregate:
        """One round, in memory that it owns.

        Raises:
            ConfigError: no updates.
        """


class GatherStrategy(RoundStrategy):
    """A rule that sees all clients' factors of one layer."""

    surveys: ClassVar[bool] = False
    """Whether `reweigh` is wanted: a first pass over all layers, before the first `gather`."""

    def reweigh(self, shares: tuple[float, ...], geometry: Tensor) -> tuple[float, ...]:
        """New shares from the geometry of the whole updates.

        Args:
            shares: p_k.
            geometry: (K, K), inner products of the clients' updates, summed over all layers: the effective weights'
                changes for LoRA layers, the deltas elsewhere.
        """
        return shares

    @abstractmethod
    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """The next global factors of `pair`, from the current global `state` and the cohort's updates."""

    def gather_plain(self, spec: TensorSpec, state: State, cohort: Cohort) -> Tensor:
        """The next global value of a tensor outside the LoRA layers; by default state + sum_k p_k delta_k."""
        deltas = [u.delta[spec.name] for u in cohort.updates]
        return state[spec.name] + weighted_sum(deltas, cohort.shares)

    def aggregate(self, state: State, layout: Layout, read: Read, round: int, seed: int) -> Aggregate:
        """One round, a layer at a time, so that memory is one layer of one cohort."""
        shares = normalised([u.weight for u in read(())])
        trained = self.trained(layout, round) - self.private(layout)
        pairs = [p for p in layout.pairs if trained & {p.A, p.B}]
        plain = _by_module(t for t in layout.tensors if t.name in trained and t.role not in ("lora_A", "lora_B"))
        if self.surveys:
            geometry = torch.zeros(len(shares), len(shares), dtype=torch.float64)
            for pair in pairs:
                geometry += inner_products([change(pair, u) for u in read((pair.A, pair.B))])
            for specs in plain:
                geometry += _inner_products_plain(read(tuple(t.name for t in specs)))
            shares = self.reweigh(shares, geometry)

        after, residuals = {name: tensor.clone() for name, tensor in state.items()}, {}
        for pair in pairs:
            gathered = self.gather(pair, state, layout, Cohort(read((pair.A, pair.B)), shares, round, seed))
            after[pair.A], after[pair.B] = gathered.A, gathered.B
            if gathered.residual is not None:
                residuals[pair.module] = gathered.residual
        for specs in plain:
            cohort = Cohort(read(tuple(t.name for t in specs)), shares, round, seed)
            after |= {t.name: self.gather_plain(t, state, cohort) for t in specs}
        return Aggregate(after, residuals)


strategies: Family[Strategy] = Family("fedpeft.strategies", "strategy")
"""All strategies, by file name."""


# ------------------------------------------------------------------------------------------------ weights and modules


def _by_module(specs: Iterable[TensorSpec]) -> list[list[TensorSpec]]:
    modules: dict[str, list[TensorSpec]] = {}
    for t in specs:
        modules.setdefault(t.module, []).append(t)
    return list(modules.values())


def _inner_products_plain(updates: Sequence[Update]) -> Tensor:
    flat = torch.stack([torch.cat([t.double().flatten() for t in u.delta.values()]) for u in updates])
    return flat @ flat.T


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights over their sum: p_k over the updates present.

    Raises:
        ConfigError: no weights, or one that is not above 0.
    """
    if not weights or min(weights) <= 0:
        raise ConfigError("a gather rule needs at least one update, and every update a weight above 0")
    total = sum(weights)
    return tuple(w / total for w in weights)


# ------------------------------------------------------------------------------------- what the rules are written with


def lora_form(layout: Layout) -> ClientForm:
    """Rank and alpha of the global LoRA factors.

    Raises:
        ConfigError: the layout has none.
    """
    if layout.form is None:
        raise ConfigError("this rule is defined for LoRA factors only; use the peft method lora, or strategy fedit")
    return layout.form


def leading_ranks(state: State, layout: Layout, form: ClientForm | None, carrier: Role = "lora_B") -> State:
    """A copy of `state` with the first r ranks of all factors, times s / s_k in the factor that is the `carrier`; of
    prompts the first r positions.

    So the client's effective weight s_k B_k A_k is that of the global adapter's leading ranks, whatever its alpha.
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


def padded(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` with zeros for the ranks that it lacks: at the end of each axis, up to the shape of `like`."""
    missing = [(0, whole - part) for part, whole in zip(tensor.shape, like.shape, strict=True)]
    return torch.nn.functional.pad(tensor, [n for pair in reversed(missing) for n in pair])


def weighted_sum(tensors: Iterable[Tensor], weights: Iterable[float]) -> Tensor:
    """sum_k w_k x_k, accumulated in fp64, in the dtype of the tensors (at least one)."""
    total, dtype = torch.zeros(()), torch.float32
    for i, (tensor, weight) in enumerate(zip(tensors, weights, strict=True)):
        dtype = tensor.dtype
        total = tensor.double() * weight if i == 0 else total.add_(tensor, alpha=weight)
    return total.to(dtype)


def product(pair: LoraPair, update: Update) -> LowRank:
    """What one client trained: s_k B_k A_k."""
    return LowRank(update.trained(pair.B) * update.scale, update.trained(pair.A))


def target(pair: LoraPair, cohort: Cohort) -> LowRank:
    """dW* = sum_k p_k s_k B_k A_k, of width sum_k r_k."""
    return stack([product(pair, u) for u in cohort.updates], cohort.shares)


def change(pair: LoraPair, update: Update) -> LowRank:
    """How one client changed the effective weight: s_k (B_k A_k - B A) = s_k [dB, B] [A_k; dA], of width 2 r_k.

    It is the same matrix for (B_k G, G^-1 A_k), so rules written in it can't be fooled by other factors.
    """
    dA = update.delta.get(pair.A, torch.zeros_like(update.received[pair.A]))
    dB = update.delta.get(pair.B, torch.zeros_like(update.received[pair.B]))
    left = torch.cat([dB, update.received[pair.B]], dim=1) * update.scale
    return LowRank(left, torch.cat([update.trained(pair.A), dA], dim=0))


def effective(pair: LoraPair, state: State, form: ClientForm) -> LowRank:
    """The weight that LoRA factors add to the base: s B A."""
    return LowRank(state[pair.B] * form.scale, state[pair.A])


def mean_factors(pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> tuple[Tensor, Tensor]:
    """(A-bar, B-bar): means of the zero-padded factors, each B_k in the unit of the global scale, (s_k / s) B_k."""
    s = lora_form(layout).scale
    total = Fold()
    for share, u in zip(cohort.shares, cohort.updates, strict=True):
        A, B = u.trained(pair.A), u.trained(pair.B) * (u.scale / s)
        total.add({"A": padded(A, state[pair.A]), "B": padded(B, state[pair.B])}, share)
    mean = total.mean()
    return mean["A"], mean["B"]


def best_factors(
    pair: LoraPair, matrix: LowRank, state: State, layout: Layout, method: str, keep_remainder: bool = False
) -> Gathered:
    """The best approximation U S V^T of `matrix` at the global rank: B = U S / s, A = V^T.

    Where a singular value is 0, B's column is 0 and A keeps its present row: a rank that is 0 in both factors has no
    gradient and would never train again. The remainder, if kept, is the exact difference.
    """
    form = lora_form(layout)
    svd = truncated_svd(matrix, form.rank, method)
    A = torch.where(svd.S[:, None] > 0, svd.Vt, state[pair.A].to(svd.Vt.dtype))
    B = svd.U * svd.S / form.scale
    remainder = stack([matrix, svd.low_rank().scaled(-1.0)]) if keep_remainder else None
    return Gathered(A, B, remainder)

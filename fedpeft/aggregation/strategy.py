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
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedpeft.aggregation.changes import Changes, compute_squared_length
from fedpeft.aggregation.factors import select_leading_ranks
from fedpeft.aggregation.server_optimizer import OptimizerState
from fedpeft.aggregation.update import Cohort, Fold, Gathered, Update, compute_weighted_sum, normalize_weights
from fedpeft.errors import ConfigError
from fedpeft.families import strategies as strategies
from fedpeft.parts import name_of, setting
from fedpeft.peft.adapter import AdapterShape, Layout, LoraPair, State, TensorSpec
from fedpeft.peft.low_rank import LowRank

WEIGHTINGS = ("auto", "rows", "uniform")


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One aggregation rule. Subclasses are frozen dataclasses; their fields are the user's settings."""

    weighting: str = setting("auto", "of clients; auto: by rows, under privacy uniform", choices=WEIGHTINGS)

    mixed_ranks: ClassVar[bool] = False
    """Whether clients may hold different ranks and alphas."""

    new_factors: ClassVar[bool] = False
    """Whether the rule makes new factors each round, in which what was remembered of the old ones has no meaning."""

    moves_ranks: ClassVar[bool] = False
    """Whether a client of lower rank holds other ranks from round to round, so that what it, or a downlink, remembers
    of its factors has no meaning in the next one."""

    counts_clients: ClassVar[bool] = False
    """Whether the rule's setting `clients` is the number of a run's clients, and its state a mean over all of them,
    which a server optimizer would spoil."""

    goes_by_tasks: ClassVar[bool] = False
    """Whether the rule's settings `tasks`, `every` and `late` are the schedule of the run's tasks
    (`fedpeft.data.task_sequence`)."""

    counts_owned: ClassVar[bool] = False
    """Whether it goes by what of its update a client has trained (`Update.owned`)."""

    asks_clients: ClassVar[bool] = False
    """Whether clients are asked for sums over the rows that they train on, beside their updates."""

    makes_head: ClassVar[bool] = False
    """Whether the rule makes the head itself, so that it needs no start."""

    groups: ClassVar[bool] = False
    """Whether clients fall into groups with states of their own (`fedpeft.aggregation.grouped_rules`)."""

    arrives_whole: ClassVar[bool] = True
    """Whether the update of a cohort of one becomes the global state; False: it is thinned out, shrunk or kept back."""

    needs_lora: ClassVar[bool] = True
    """Whether the rule is only defined for LoRA factors; False: any PEFT method."""

    @classmethod
    def plain_sum(cls) -> bool:
        """Whether the rule adds up the clients' contributions and divides by the sum of their weights, no more."""
        return False

    @classmethod
    def sum_of_clients(cls) -> bool:
        """Whether the sum of the clients' weighted updates is all that the rule wants of them."""
        return False

    @property
    def asynchronous(self) -> int:
        """How many updates the server waits for, while other clients go on training; 0: for the whole cohort."""
        return 0

    @property
    def asks(self) -> str:
        """The question (`fedpeft.trust.question`) to each client of a round before it trains, whose answer goes with
        its update; empty: none."""
        return ""

    @property
    def personal_pull(self) -> float | None:
        """How strongly a model of each client's own, trained beside the global one, is held near it; None: no such."""
        return None

    def check(self, layout: Layout, forms: Iterable[AdapterShape | None]) -> None:
        """Refuse what the rule does not support, with the reason.

        Raises:
            ConfigError: no LoRA factors, different forms, a client of a higher rank than the global adapter, or no rule
                of either kind.
        """
        name = type(self).__name__
        if not isinstance(self, LinearStrategy | RoundStrategy):
            raise ConfigError(
                f"FP1022 {name} is made from Strategy itself, which makes no next state: make it from LinearStrategy, "
                "GatherStrategy or RoundStrategy of fedpeft.aggregation.strategy"
            )
        if self.needs_lora and not layout.pairs:
            raise ConfigError(
                f"FP1023 {name} is defined for LoRA factors only; use the peft method lora, or strategy fedit"
            )
        for form in set(forms) - {None, layout.form}:
            if not self.mixed_ranks:
                raise ConfigError(
                    f"FP1024 {name} needs the same rank and alpha at all clients; flexlora takes mixed ranks"
                )
            if form is not None and layout.form is not None and form.rank > layout.form.rank:
                raise ConfigError(
                    f"FP1025 a client's rank {form.rank} exceeds the global rank {layout.form.rank}; raise it"
                )

    def start(self, state: State, layout: Layout, seed: int) -> State:
        """The initial global state; by default the PEFT method's own initialisation."""
        return state

    def private(self, layout: Layout) -> frozenset[str]:
        """Names of the tensors that each client keeps for itself, from their common start; by default none."""
        return frozenset()

    def personal(self, layout: Layout) -> bool:
        """Whether clients' models differ: tensors, or models, stay with them, or groups are sent their own."""
        return bool(self.private(layout)) or self.personal_pull is not None or self.groups

    def trained(self, layout: Layout, round_number: int) -> frozenset[str]:
        """Names of the tensors that clients train in `round_number` (counted from 1); by default all."""
        return frozenset(layout.names)

    def ranks(
        self, layout: Layout, form: AdapterShape | None, seed: int, round_number: int, client: int
    ) -> tuple[int, ...]:
        """Which ranks of the global factors a client that holds `form` is given in a round, in its order; empty, the
        default: the leading ones."""
        return ()

    def whole_form(self, form: AdapterShape | None) -> AdapterShape | None:
        """The form of the global factors that clients of a `form` need; by default theirs."""
        return form

    def held_form(self, layout: Layout, form: AdapterShape | None) -> AdapterShape | None:
        """In which form a client of `form` is sent the global factors, and holds them; by default in its own.

        One that holds more trains its `ranks` alone, and hands in these.
        """
        return form

    def dispatch(self, state: State, layout: Layout, form: AdapterShape | None, round_number: int) -> State:
        """A copy of what a client that holds `form` is sent; by default the leading ranks of the global state.

        Where a client is given other `ranks`, they lead in the `state` that this is called with.
        """
        return select_leading_ranks(state, layout, form)

    def group(self, client: int, learned: State) -> str:
        """Whose state a client is sent, given what the rule keeps; empty, the default: the global one."""
        return ""

    def of_group(self, group: str, state: State, learned: State, layout: Layout) -> State:
        """The state of a group, given the global one; by default that."""
        return state

    def prepared(self, received: State, layout: Layout) -> State:
        """What a client starts from, given what it was sent and what it keeps; by default that."""
        return received

    def count_round_kinds(self, layout: Layout) -> int:
        """Of how many kinds rounds are, by what is trained in them: two where the factors take turns."""
        return len({self.trained(layout, round_number) for round_number in range(1, 5)})

    def still(self, layout: Layout) -> frozenset[str]:
        """Names of the tensors that travel both ways and that local steps leave alone; by default none."""
        return frozenset()

    def pull(self, spec: TensorSpec, value: Tensor, received: Tensor, ranks: tuple[int, ...]) -> Tensor | None:
        """What is added to a tensor's gradient in each local step, in its shape; by default nothing.

        Args:
            spec: which tensor.
            value: as it is before the step; `received`: as the client started from it.
            ranks: that the client trains of those that it holds; empty: all.
        """
        return None

    def is_steering(self, layout: Layout) -> bool:
        """Whether local steps must leave alone a part of what a client holds, or are pulled."""
        own = type(self)
        return bool(self.still(layout)) or any(
            getattr(own, name) is not getattr(Strategy, name) for name in ("held_form", "pull")
        )

    def contributed(self, delta: State, received: State, trained: State, layout: Layout) -> State:
        """What a client has to hand in, given how what it shares has moved, and all that it started from and has come
        to; by default the former."""
        return delta

    def submitted(self, delta: State, layout: Layout, round_number: int) -> State:
        """What of its delta a client hands in (its half of the rule, before the codec); by default all of it."""
        return delta

    def next_form(self, update: Update, layout: Layout) -> AdapterShape | None:
        """The form the client holds from the next round on; by default the one it has."""
        return update.form


class LinearStrategy(Strategy):
    """A weighted mean of contributions."""

    @classmethod
    def plain_sum(cls) -> bool:
        """Unless the rule folds, or divides, in its own way."""
        return cls.fold is LinearStrategy.fold and cls.pseudo_gradient is LinearStrategy.pseudo_gradient

    @classmethod
    def sum_of_clients(cls) -> bool:
        """If it is a plain sum of updates as they are."""
        return cls.plain_sum() and cls.contribution is LinearStrategy.contribution

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

    def finish(self, state: State, layout: Layout, round_number: int) -> State:
        """Post-processing of the next global state, free under privacy; by default none."""
        return state


@dataclass(frozen=True)
class Aggregate:
    """The next global state, and by module what goes beside it into the frozen base."""

    state: State
    residuals: dict[str, LowRank]


Read = Callable[[tuple[str, ...]], Sequence[Update]]
"""All updates of the round in the order of client ids, holding only the named tensors (those trained this round)."""


def can_fill_base(strategy: Strategy) -> bool:
    """Whether a rule, as it is set, puts a residual into the base."""
    return isinstance(strategy, RoundStrategy) and strategy.fills_base


class RoundStrategy(Strategy, ABC):
    """A rule that needs all updates of a round before it can say anything."""

    @property
    def fills_base(self) -> bool:
        """Whether the rule, as it is set, puts a residual into the base; by default if a remainder is kept."""
        return getattr(self, "remainder", "drop") == "keep"

    @abstractmethod
    def aggregate(self, state: State, layout: Layout, read: Read, round_number: int, seed: int) -> Aggregate:
        """One round, in memory that it owns.

        Raises:
            ConfigError: no updates.
        """

    def remembering(
        self, state: State, layout: Layout, read: Read, round_number: int, seed: int, memory: OptimizerState
    ) -> tuple[Aggregate, OptimizerState]:
        """As `aggregate`, for a rule that keeps something between rounds; by default the memory stays as it is."""
        return self.aggregate(state, layout, read, round_number, seed), memory


class GatherStrategy(RoundStrategy):
    """A rule that sees all clients' factors of one layer."""

    surveys: ClassVar[Literal["nothing", "lengths", "products"]] = "nothing"
    """What `reweigh` wants to know of the updates from a first pass over all layers, before the first `gather`: their
    lengths, or all inner products, which take some hundred times as long."""

    def reweigh(self, shares: tuple[float, ...], geometry: Tensor) -> tuple[float, ...]:
        """New shares from the geometry of the whole updates.

        Args:
            shares: p_k.
            geometry: (K, K), inner products of the clients' updates, summed over all layers: the effective weights'
                changes for LoRA layers, the deltas elsewhere. Where only lengths are wanted, 0 off the diagonal.
        """
        return shares

    @abstractmethod
    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """The next global factors of `pair`, from the current global `state` and the cohort's updates."""

    def gather_plain(self, spec: TensorSpec, state: State, cohort: Cohort) -> Tensor:
        """The next global value of a tensor outside the LoRA layers; by default state + sum_k p_k delta_k."""
        deltas = [u.delta[spec.name] for u in cohort.updates]
        return state[spec.name] + compute_weighted_sum(deltas, cohort.shares)

    def aggregate(self, state: State, layout: Layout, read: Read, round_number: int, seed: int) -> Aggregate:
        """One round, a layer at a time, so that memory is one layer of one cohort."""
        shares = normalize_weights([u.weight for u in read(())])
        trained = self.trained(layout, round_number) - self.private(layout)
        pairs = [p for p in layout.pairs if trained & {p.A, p.B}]
        plain = _group_by_module(t for t in layout.tensors if t.name in trained and t.role not in ("lora_A", "lora_B"))
        if self.surveys != "nothing":
            survey = _compute_squared_lengths if self.surveys == "lengths" else _compute_inner_products
            shares = self.reweigh(shares, survey(pairs, plain, read, len(shares)))

        after, residuals = {name: tensor.clone() for name, tensor in state.items()}, {}
        for pair in pairs:
            gathered = self.gather(pair, state, layout, Cohort(read((pair.A, pair.B)), shares, round_number, seed))
            after[pair.A], after[pair.B] = gathered.A, gathered.B
            if gathered.residual is not None:
                residuals[pair.module] = gathered.residual
        for specs in plain:
            cohort = Cohort(read(tuple(t.name for t in specs)), shares, round_number, seed)
            after |= {t.name: self.gather_plain(t, state, cohort) for t in specs}
        return Aggregate(after, residuals)


def is_shared_sum(strategy: Strategy, layout: Layout) -> bool:
    """Whether a round is a plain sum of what all clients share of this adapter, which a mechanism can bound."""
    if not strategy.plain_sum() or strategy.asynchronous or strategy.private(layout):
        return False
    try:
        strategy.check(layout, [layout.form])
    except ConfigError:
        return False
    return True


def list_shared_sums(layout: Layout) -> list[str]:
    """The names of all such rules, those aside whose clients have models of their own, and are scored one by one."""
    found = [strategies.build(name) for name in strategies.names if strategies.part(name).plain_sum()]
    return [
        name_of(type(s)) for s in found if s.personal_pull is None and not s.asks_clients and is_shared_sum(s, layout)
    ]


# ------------------------------------------------------------------------------------------------ weights and modules


def _group_by_module(specs: Iterable[TensorSpec]) -> list[list[TensorSpec]]:
    modules: dict[str, list[TensorSpec]] = {}
    for t in specs:
        modules.setdefault(t.module, []).append(t)
    return list(modules.values())


def _compute_inner_products(
    pairs: Sequence[LoraPair], plain: Sequence[list[TensorSpec]], read: Read, clients: int
) -> Tensor:
    """All inner products of the updates, (K, K), fp64."""
    geometry = torch.zeros(clients, clients, dtype=torch.float64)
    for pair in pairs:
        geometry += Changes.from_updates(pair, read((pair.A, pair.B))).compute_inner_products()
    for specs in plain:
        updates = read(tuple(t.name for t in specs))
        flat = torch.stack([torch.cat([t.double().flatten() for t in u.delta.values()]) for u in updates])
        geometry += flat @ flat.T
    return geometry


def _compute_squared_lengths(
    pairs: Sequence[LoraPair], plain: Sequence[list[TensorSpec]], read: Read, clients: int
) -> Tensor:
    """The squared lengths of the updates on the diagonal of (K, K), fp64; the rest is 0."""
    squares = torch.zeros(clients, dtype=torch.float64)
    for pair in pairs:
        squares += torch.stack([compute_squared_length(pair, update) for update in read((pair.A, pair.B))])
    for specs in plain:
        for k, update in enumerate(read(tuple(t.name for t in specs))):
            squares[k] += sum(t.double().square().sum() for t in update.delta.values())
    return squares.diag()

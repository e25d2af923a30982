"""Base classes of aggregation rules: pure mathematics, without sockets, Flower or files.

A rule states what each client is sent and trains, and how updates become the next global state. There are two types.
A *linear* rule is a weighted mean of contributions. It folds updates in one at a time, so memory does not depend on the
number of clients, and server optimizers and user-level privacy compose with it. A *round* rule needs all updates of a
round. Nearly all of them *gather*: they need every client's factors of one layer at once (SVD, stacking, Krum). They
are called one layer at a time, with a sequence that decodes the waiting payloads.

Each LoRA rule is compared with this target, with s_k = alpha_k / r_k and weights p_k that sum to 1:

    dW* = sum_k p_k s_k B_k A_k

`Strategy` contains what all rules have. What a few rules do in addition is in `fedpeft.aggregation.abilities`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedpeft.aggregation.update import (
    Cohort,
    Fold,
    Gathered,
    Update,
    compute_weighted_sum,
    normalize_weights,
    select_leading_ranks,
)
from fedpeft.errors import ConfigError
from fedpeft.parts import setting
from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import AdapterShape, JointMeaning, Layout, LoraPair, State, TensorSpec
from fedpeft.peft.low_rank import LowRank

WEIGHTINGS = ("auto", "rows", "uniform")


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One aggregation rule. Subclasses are frozen dataclasses; their fields are the user's settings."""

    weighting: str = setting(
        "auto", "weights of clients; auto: by examples, or uniform under privacy", choices=WEIGHTINGS
    )

    mixed_ranks: ClassVar[bool] = False
    """Whether clients may hold different ranks and alphas."""

    new_factors: ClassVar[bool] = False
    """Whether the rule makes new factors each round. What was remembered of the old ones then has no meaning."""

    counts_owned: ClassVar[bool] = False
    """Whether the rule reads how much of each entry a client has trained (`Update.owned`)."""

    arrives_whole: ClassVar[bool] = True
    """Whether the update of a cohort of one becomes the global state; False: it is thinned out, shrunk or kept back."""

    needs_lora: ClassVar[bool] = True
    """Whether the rule is only defined for LoRA factors; False: any PEFT method."""

    preserves: ClassVar[tuple[JointMeaning, ...]] = ()
    """The joint meanings of tensors that hold after a round; PEFT methods declare what they need."""

    @property
    def fills_base(self) -> bool:
        """Whether the rule, with its settings, adds a residual to the frozen base; by default not."""
        return False

    def check(self, layout: Layout, forms: Iterable[AdapterShape | None]) -> None:
        """Refuse what the rule does not support.

        Args:
            layout: the trainable tensors.
            forms: adapter shapes of the clients.

        Raises:
            ConfigError: no LoRA factors, different forms, a client of a higher rank than the global adapter, or no rule
                of either type.
        """
        name = type(self).__name__
        if not isinstance(self, LinearStrategy | RoundStrategy):
            raise ConfigError(
                f"FP1022 {name} subclasses Strategy directly, which computes no next state; subclass "
                "LinearStrategy, GatherStrategy or RoundStrategy of fedpeft.aggregation.strategy"
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
        """Return the initial global state; by default the PEFT method's own initialization."""
        return state

    def list_private(self, layout: Layout) -> frozenset[str]:
        """Return the names of the tensors that each client keeps, from their common start; by default none."""
        return frozenset()

    def list_trained(self, layout: Layout, round_number: int) -> frozenset[str]:
        """Return the names of the tensors that clients train in a round, counted from 1; by default all."""
        return frozenset(layout.names)

    def dispatch(self, state: State, layout: Layout, form: AdapterShape | None, round_number: int) -> State:
        """Return a copy of what a client of a `form` is sent; by default the leading ranks of the global state.

        If a `RankSchedule` gives the client other ranks, these lead in `state`.
        """
        return select_leading_ranks(state, layout, form)

    def finish(self, before: State, after: State, layout: Layout, round_number: int) -> State:
        """Post-process the next global state, which costs no privacy; by default leave it as it is.

        Linear and gathering rules call it last in each round.

        Args:
            before: global state before the round.
            after: global state after the step of the server.
            layout: the trainable tensors.
            round_number: counted from 1.
        """
        return after


class LinearStrategy(Strategy):
    """A weighted mean of contributions."""

    adds_deltas: ClassVar[bool] = False
    """Whether `contribution`, if overridden, is the delta for clients that all have the global rank and alpha."""

    def contribution(self, update: Update, state: State, layout: Layout) -> State:
        """Return what one client adds to the mean, in the shapes of the global `state`.

        By default this is its delta of the tensors that are not private, even if a client hands in others. User-level
        privacy clips this and not the raw delta, so rescaling by mixed alphas cannot exceed the bound.
        """
        private = self.list_private(layout)
        return {name: delta for name, delta in update.delta.items() if name not in private}

    def fold(self, total: Fold, update: Update, state: State, layout: Layout) -> None:
        """Add one client's contribution with its weight."""
        total.add(self.contribution(update, state, layout), update.weight)

    def pseudo_gradient(self, total: Fold, layout: Layout) -> State:
        """Return the direction of the server optimizer's step; by default the weighted mean of the contributions."""
        return total.mean()


@dataclass(frozen=True)
class Aggregate:
    """The next global state, and the residuals by module, which the frozen base takes."""

    state: State
    residuals: dict[str, LowRank]


Read = Callable[[tuple[str, ...]], Sequence[Update]]
"""Returns all updates of the round in the order of client ids, with the named tensors that were trained."""


class RoundStrategy(Strategy, ABC):
    """A rule that needs all updates of a round."""

    @abstractmethod
    def aggregate(self, state: State, layout: Layout, read: Read, round_number: int, seed: int) -> Aggregate:
        """Aggregate one round, in memory of its own.

        Raises:
            ConfigError: no updates.
        """


class GatherStrategy(RoundStrategy):
    """A rule that needs all clients' factors of one layer at once."""

    def compute_shares(
        self, pairs: Sequence[LoraPair], plain: Sequence[Sequence[TensorSpec]], read: Read
    ) -> tuple[float, ...]:
        """Return the share of each update; by default p_k, the weights over their sum.

        Args:
            pairs: the LoRA layers that were trained.
            plain: other tensors that were trained, by module.
            read: reads the updates.
        """
        return normalize_weights([u.weight for u in read(())])

    @abstractmethod
    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """Compute the next global factors of `pair` from the current global `state` and the cohort's updates."""

    def gather_plain(self, spec: TensorSpec, state: State, cohort: Cohort) -> Tensor:
        """Compute the next global value of a tensor outside the LoRA layers; by default state + sum_k p_k delta_k."""
        deltas = [u.delta[spec.name] for u in cohort.updates]
        return state[spec.name] + compute_weighted_sum(deltas, cohort.shares)

    def aggregate(self, state: State, layout: Layout, read: Read, round_number: int, seed: int) -> Aggregate:
        """Aggregate one round a layer at a time, so that memory is one layer of one cohort."""
        trained = self.list_trained(layout, round_number) - self.list_private(layout)
        pairs = [p for p in layout.pairs if trained & {p.A, p.B}]
        plain = _group_by_module(t for t in layout.tensors if t.name in trained and t.role not in ("lora_A", "lora_B"))
        shares = self.compute_shares(pairs, plain, read)
        after, residuals = {name: tensor.clone() for name, tensor in state.items()}, {}
        for pair in pairs:
            gathered = self.gather(pair, state, layout, Cohort(read((pair.A, pair.B)), shares, round_number, seed))
            after[pair.A], after[pair.B] = gathered.A, gathered.B
            if gathered.residual is not None:
                residuals[pair.module] = gathered.residual
        for specs in plain:
            cohort = Cohort(read(tuple(t.name for t in specs)), shares, round_number, seed)
            after |= {t.name: self.gather_plain(t, state, cohort) for t in specs}
        return Aggregate(self.finish(state, after, layout, round_number), residuals)


def list_preserving_strategies(meaning: JointMeaning) -> list[str]:
    """Return the names of the strategies that preserve a joint meaning of tensors."""
    return [name for name in strategies.names if meaning in strategies.part(name).preserves]


def count_round_types(strategy: Strategy, layout: Layout) -> int:
    """Count the sets of tensors that rounds train: two if the factors take turns, otherwise one."""
    return len({strategy.list_trained(layout, round_number) for round_number in range(1, 5)})


def _group_by_module(specs: Iterable[TensorSpec]) -> list[list[TensorSpec]]:
    """Group tensors by module, in the order of the layout."""
    modules: dict[str, list[TensorSpec]] = {}
    for t in specs:
        modules.setdefault(t.module, []).append(t)
    return list(modules.values())

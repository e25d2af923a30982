"""How a round's updates become the next global state: folded in as they come, or put on disk and read by layers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, overload

from safetensors import safe_open
from safetensors.torch import save_file

from fedpeft.aggregation.grouped_rules import GroupedStrategy, read_received_updates
from fedpeft.aggregation.server_optimizer import OptimizerState, ServerOptimizer
from fedpeft.aggregation.strategy import LinearStrategy, RoundStrategy, Strategy
from fedpeft.aggregation.update import Fold, Update, check_made
from fedpeft.machine.files import raise_write_errors
from fedpeft.peft.adapter import Layout, State, subtract_states
from fedpeft.peft.factor_view import FactorView
from fedpeft.peft.low_rank import LowRank

if TYPE_CHECKING:
    from fedpeft.trust.disagreement import Disagreement


@dataclass(frozen=True)
class AggregationResult:
    """The next global state and optimizer memory, what goes into the base, by module, and the next clipping norm.

    `error`: of the aggregate, where it is measured (see `fedpeft.aggregation.exactness`); `disagreement`: of the
    clients, where somebody looks (`fedpeft.trust.disagreement`); `learned`: what a rule of groups keeps, None: of other
    rules.
    """

    state: State
    memory: OptimizerState
    residuals: dict[str, LowRank] = field(default_factory=dict)
    clip: float | None = None
    error: float | None = None
    disagreement: Disagreement | None = None
    learned: State | None = None


class Aggregator(Protocol):
    """Takes a round's updates in the order of client ids."""

    def add(self, update: Update) -> None:
        """Take one update."""

    def finish(self, memory: OptimizerState) -> AggregationResult:
        """What the round has led to."""
        ...


class LinearAggregator:
    """Folds updates into a weighted mean as they come; the server optimizer steps along it."""

    def __init__(
        self, strategy: LinearStrategy, optimizer: ServerOptimizer, layout: Layout, state: State, round_number: int
    ) -> None:
        self.strategy, self.optimizer = strategy, optimizer
        self.layout, self.state, self.round = layout, state, round_number
        self.trained = strategy.trained(layout, round_number) - strategy.private(layout)
        self.total = Fold()

    def add(self, update: Update) -> None:
        """Fold one update in.

        Raises:
            ConfigError: what the strategy makes of it does not fit the state.
        """
        self.strategy.fold(self.total, update, self.state, self.layout)
        check_made(self.strategy, self.total.sums, self.state, self.trained)

    def finish(self, memory: OptimizerState) -> AggregationResult:
        """A step of the server optimizer along the mean.

        Raises:
            ConfigError: what the optimizer, or the strategy, makes of it does not fit the state.
        """
        direction = self.strategy.pseudo_gradient(self.total, self.layout)
        after, memory = self.optimizer.step(self.state, direction, memory)
        check_made(self.optimizer, after, self.state, self.state, "server optimizer")
        after = self.strategy.finish(after, self.layout, self.round)
        check_made(self.strategy, after, self.state, self.state)
        return AggregationResult(after, memory)


class RoundAggregator:
    """Puts updates on disk as they come; the strategy then reads them, most a layer at a time."""

    def __init__(
        self,
        strategy: RoundStrategy,
        layout: Layout,
        state: State,
        round_number: int,
        seed: int,
        scratch: Path,
        learned: State | None = None,
    ) -> None:
        self.strategy, self.layout, self.state, self.round, self.seed = strategy, layout, state, round_number, seed
        self.shelf, self.learned = UpdateFiles(scratch), learned or {}

    def add(self, update: Update) -> None:
        """Put one update on the shelf."""
        self.shelf.put(update)

    def finish(self, memory: OptimizerState) -> AggregationResult:
        """The strategy's own result, and what it keeps of it.

        Raises:
            ConfigError: it is not the whole state.
        """
        outcome = (
            self._aggregate_groups(memory)
            if isinstance(self.strategy, GroupedStrategy)
            else self._aggregate_round(memory)
        )
        check_made(self.strategy, outcome.state, self.state, self.state)
        self.shelf.clear()
        return outcome

    def _aggregate_round(self, memory: OptimizerState) -> AggregationResult:
        made, memory = self.strategy.remembering(
            self.state, self.layout, self.shelf.read, self.round, self.seed, memory
        )
        return AggregationResult(made.state, memory, made.residuals)

    def _aggregate_groups(self, memory: OptimizerState) -> AggregationResult:
        rule = self.strategy
        assert isinstance(rule, GroupedStrategy)
        heard = read_received_updates(self.round, self.state, self.learned, self.layout, self.shelf.read, rule)
        state, learned = rule.aggregate_groups(heard)
        return AggregationResult(state, memory, learned=learned)


def create_aggregator(  # noqa: PLR0913
    strategy: Strategy,
    optimizer: ServerOptimizer,
    layout: Layout,
    state: State,
    round_number: int,
    seed: int,
    scratch: Path,
    factoring: FactorView | None = None,
    learned: State | None = None,
) -> Aggregator:
    """The aggregator for a strategy of either kind; with a `factoring`, the strategy sees factors; `learned`: what a
    rule of groups keeps."""
    if factoring:
        factors = factoring.factors(state)
        inner = create_aggregator(strategy, optimizer, factoring.layout, factors, round_number, seed, scratch)
        return FactoredAggregator(inner, factoring, state, round_number)
    if isinstance(strategy, LinearStrategy):
        return LinearAggregator(strategy, optimizer, layout, state, round_number)
    assert isinstance(strategy, RoundStrategy)
    return RoundAggregator(strategy, layout, state, round_number, seed, scratch, learned)


@dataclass
class UpdateFiles:
    """Decoded updates in safetensors files, in the order in which they were put."""

    folder: Path
    _heads: list[Update] = field(default_factory=list)

    def put(self, update: Update) -> None:
        """Store the update's tensors; only its description stays in memory.

        Raises:
            RunError: the disk is full or can't be written.
        """
        with raise_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({n: t.contiguous() for n, t in update.delta.items()}, self._get_file(len(self._heads)))
        self._heads.append(replace(update, delta={}))

    def _get_file(self, index: int) -> Path:
        return self.folder / f"{index:06d}.safetensors"

    def read(self, names: tuple[str, ...]) -> Sequence[Update]:
        """All updates, holding only the tensors called `names`; decoded anew at each pass."""
        return _Layer(self, names)

    def clear(self) -> None:
        """Forget the updates and remove their files."""
        self._heads.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class _Layer(Sequence[Update]):
    shelf: UpdateFiles
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.shelf._heads)

    @overload
    def __getitem__(self, index: int) -> Update: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Update]: ...
    def __getitem__(self, index: int | slice) -> Update | Sequence[Update]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        head = self.shelf._heads[index]
        with safe_open(self.shelf._get_file(index), framework="pt") as file:
            present = set(file.keys())
            return replace(head, delta={n: file.get_tensor(n) for n in self.names if n in present})

    def __iter__(self) -> Iterator[Update]:
        return (self[i] for i in range(len(self)))


@dataclass
class FactoredAggregator:
    """An aggregator that is handed factors: `inner` was made for `factoring.layout`."""

    inner: Aggregator
    factoring: FactorView
    state: State
    round: int

    def add(self, update: Update) -> None:
        """Hand one update on, as factors."""
        received = self.factoring.factors(update.received)
        trained = self.factoring.factors({name: update.trained(name) for name in update.received})
        delta = subtract_states(trained, received)
        self.inner.add(replace(update, form=self.factoring.layout.form, received=received, delta=delta))

    def finish(self, memory: OptimizerState) -> AggregationResult:
        """The inner result, as parameters."""
        outcome = self.inner.finish(memory)
        return replace(outcome, state=self.factoring.parameters(outcome.state, self.state, self.round))

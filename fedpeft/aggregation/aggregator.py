"""Aggregators, which turn the updates of a round into the next global state.

A linear rule's aggregator folds updates in as they arrive. A round rule's puts them on disk and reads them by layers.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, overload

from safetensors import safe_open
from safetensors.torch import save_file

from fedpeft.aggregation.abilities import RemembersRounds
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
    """The result of a round.

    Attributes:
        state: next global state.
        memory: what optimizer and rule keep for the next round.
        residuals: additions to the base, by module.
        clip: next clipping norm; None: nothing is clipped.
        error: error of the aggregate (`fedpeft.aggregation.exactness`); None: it is not measured.
        disagreement: disagreement of the clients (`fedpeft.trust.disagreement`); None: it is not measured.
        learned: tensors that a rule of groups keeps; None: they do not change.
    """

    state: State
    memory: OptimizerState
    residuals: dict[str, LowRank] = field(default_factory=dict)
    clip: float | None = None
    error: float | None = None
    disagreement: Disagreement | None = None
    learned: State | None = None


class Aggregator(Protocol):
    """A receiver of a round's updates, in the order of client ids."""

    def add(self, update: Update) -> None:
        """Take one update."""

    def finish(self, memory: OptimizerState) -> AggregationResult:
        """Return the result of the round, given the optimizer state before it."""
        ...


class LinearAggregator:
    """An aggregator that folds updates into a weighted mean, along which the server optimizer steps."""

    def __init__(
        self, strategy: LinearStrategy, optimizer: ServerOptimizer, layout: Layout, state: State, round_number: int
    ) -> None:
        """Start a round from the global `state`."""
        self.strategy, self.optimizer = strategy, optimizer
        self.layout, self.state, self.round = layout, state, round_number
        self.trained = strategy.list_trained(layout, round_number) - strategy.list_private(layout)
        self.total = Fold()

    def add(self, update: Update) -> None:
        """Fold one update in.

        Raises:
            ConfigError: the strategy's sum does not fit the state.
        """
        self.strategy.fold(self.total, update, self.state, self.layout)
        check_made(self.strategy, self.total.sums, self.state, self.trained)

    def finish(self, memory: OptimizerState) -> AggregationResult:
        """Return the result of a step of the server optimizer along the mean.

        Raises:
            ConfigError: the optimizer's or the strategy's next state does not fit the state.
        """
        direction = self.strategy.pseudo_gradient(self.total, self.layout)
        stepped, memory = self.optimizer.step(self.state, direction, memory)
        check_made(self.optimizer, stepped, self.state, self.state, "server optimizer")
        after = self.strategy.finish(self.state, stepped, self.layout, self.round)
        check_made(self.strategy, after, self.state, self.state)
        return AggregationResult(after, memory)


class RoundAggregator:
    """An aggregator that puts updates on disk, where the strategy reads them, usually a layer at a time."""

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
        """Start a round from the global `state`, with updates in files of the folder `scratch`."""
        self.strategy, self.layout, self.state, self.round, self.seed = strategy, layout, state, round_number, seed
        self.shelf, self.learned = UpdateFiles(scratch), learned or {}

    def add(self, update: Update) -> None:
        """Put one update on disk."""
        self.shelf.put(update)

    def finish(self, memory: OptimizerState) -> AggregationResult:
        """Return the strategy's result, and remove the files.

        Raises:
            ConfigError: the result is not a whole state.
        """
        result = self._aggregate(memory)
        check_made(self.strategy, result.state, self.state, self.state)
        self.shelf.clear()
        return result

    def _aggregate(self, memory: OptimizerState) -> AggregationResult:
        rule, given = self.strategy, (self.state, self.layout, self.shelf.read, self.round, self.seed)
        if isinstance(rule, GroupedStrategy):
            received = read_received_updates(self.round, self.state, self.learned, self.layout, self.shelf.read, rule)
            state, learned = rule.aggregate_groups(received)
            return AggregationResult(state, memory, learned=learned)
        if isinstance(rule, RemembersRounds):
            made, memory = rule.aggregate_with_memory(*given, memory)
        else:
            made = rule.aggregate(*given)
        return AggregationResult(made.state, memory, made.residuals)


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
    """Create the aggregator of a round for a strategy of either type.

    Args:
        strategy: the rule.
        optimizer: server optimizer, which only linear rules use.
        layout: the trainable tensors.
        state: global state before the round.
        round_number: counted from 1.
        seed: the run's seed.
        scratch: folder for updates that wait.
        factoring: view of the tensors as factors, which the strategy then receives; None: it receives the tensors.
        learned: tensors that a rule of groups keeps.
    """
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
            RunError: the disk is full or cannot be written.
        """
        with raise_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({n: t.contiguous() for n, t in update.delta.items()}, self._get_file(len(self._heads)))
        self._heads.append(replace(update, delta={}))

    def _get_file(self, index: int) -> Path:
        return self.folder / f"{index:06d}.safetensors"

    def read(self, names: tuple[str, ...]) -> Sequence[Update]:
        """Return all updates with only the tensors called `names`, which each pass reads anew."""
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
    """An aggregator that hands updates on as factors, to an `inner` one for `factoring.layout`."""

    inner: Aggregator
    factoring: FactorView
    state: State
    round: int

    def add(self, update: Update) -> None:
        """Pass one update on as factors."""
        received = self.factoring.factors(update.received)
        trained = self.factoring.factors({name: update.get_trained(name) for name in update.received})
        delta = subtract_states(trained, received)
        self.inner.add(replace(update, form=self.factoring.layout.form, received=received, delta=delta))

    def finish(self, memory: OptimizerState) -> AggregationResult:
        """Return the inner result as parameters."""
        outcome = self.inner.finish(memory)
        return replace(outcome, state=self.factoring.parameters(outcome.state, self.state, self.round))

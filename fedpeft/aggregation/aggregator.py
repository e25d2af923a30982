"""How a round's updates become the next global state: folded in as they come, or kept and then read together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fedpeft.aggregation.server_optimizer import Memory, ServerOptimizer
from fedpeft.aggregation.shelf import Shelf
from fedpeft.aggregation.strategy import Fold, LinearStrategy, RoundStrategy, Strategy, Update
from fedpeft.peft.adapter import Layout, State
from fedpeft.peft.factor_view import FactoredCollector, Factoring
from fedpeft.peft.low_rank import LowRank


@dataclass(frozen=True)
class Outcome:
    """The next global state and optimizer memory, what goes into the base, by module, and the next clipping norm."""

    state: State
    memory: Memory
    residuals: dict[str, LowRank] = field(default_factory=dict)
    clip: float | None = None


class Collector(Protocol):
    """Takes a round's updates in the order of client ids."""

    def add(self, update: Update) -> None:
        """Take one update."""

    def finish(self, memory: Memory) -> Outcome:
        """What the round has led to."""
        ...


class LinearCollector:
    """Folds updates into a weighted mean as they come; the server optimizer steps along it."""

    def __init__(
        self, strategy: LinearStrategy, optimizer: ServerOptimizer, layout: Layout, state: State, round: int
    ) -> None:
        self.strategy, self.optimizer = strategy, optimizer
        self.layout, self.state, self.round = layout, state, round
        self.total = Fold()

    def add(self, update: Update) -> None:
        """Fold one update in."""
        self.strategy.fold(self.total, update, self.state, self.layout)

    def finish(self, memory: Memory) -> Outcome:
        """A step of the server optimizer along the mean."""
        direction = self.strategy.pseudo_gradient(self.total, self.layout)
        after, memory = self.optimizer.step(self.state, direction, memory)
        return Outcome(self.strategy.finish(after, self.layout, self.round), memory)


class RoundCollector:
    """Puts updates on disk as they come; the strategy then reads them, most a layer at a time."""

    def __init__(
        self, strategy: RoundStrategy, layout: Layout, state: State, round: int, seed: int, scratch: Path
    ) -> None:
        self.strategy, self.layout, self.state, self.round, self.seed = strategy, layout, state, round, seed
        self.shelf = Shelf(scratch)

    def add(self, update: Update) -> None:
        """Put one update on the shelf."""
        self.shelf.put(update)

    def finish(self, memory: Memory) -> Outcome:
        """The strategy's own result; the memory is unchanged."""
        made = self.strategy.aggregate(self.state, self.layout, self.shelf.read, self.round, self.seed)
        self.shelf.clear()
        return Outcome(made.state, memory, made.residuals)


def collector(
    strategy: Strategy,
    optimizer: ServerOptimizer,
    layout: Layout,
    state: State,
    round: int,
    seed: int,
    scratch: Path,
    factoring: Factoring | None = None,
) -> Collector:
    """The collector for a strategy of either kind; with a `factoring`, the strategy sees factors."""
    if factoring:
        factors = factoring.factors(state)
        inner = collector(strategy, optimizer, factoring.layout, factors, round, seed, scratch)
        return FactoredCollector(inner, factoring, state, round)
    if isinstance(strategy, LinearStrategy):
        return LinearCollector(strategy, optimizer, layout, state, round)
    assert isinstance(strategy, RoundStrategy)
    return RoundCollector(strategy, layout, state, round, seed, scratch)

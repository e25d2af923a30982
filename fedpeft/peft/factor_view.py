"""How strategies see parameters that are exchanged in another form than LoRA factors.

A strategy is mathematics on pairs of factors. A method whose clients train something else (AdaLoRA's P, E and Q) says
here how that becomes factors, and how the strategy's result becomes parameters again. Payloads, checkpoints and
clients know the parameters only; this happens on the server, between an update's arrival and its aggregation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from fedpeft.peft.adapter import Layout, State, difference

if TYPE_CHECKING:
    from fedpeft.aggregation.aggregator import Collector, Outcome
    from fedpeft.aggregation.server_optimizer import Memory
    from fedpeft.aggregation.strategy import Update


class Factoring(Protocol):
    """Between parameters and factors."""

    @property
    def layout(self) -> Layout:
        """Of the factors."""
        ...

    def factors(self, state: State) -> State:
        """Parameters as factors."""
        ...

    def parameters(self, factors: State, before: State, round: int) -> State:
        """Factors as parameters; `before` are the parameters of the round's start, `round` counts from 1."""
        ...


@dataclass
class FactoredCollector:
    """A collector that is handed factors: `inner` was made for `factoring.layout`."""

    inner: Collector
    factoring: Factoring
    state: State
    round: int

    def add(self, update: Update) -> None:
        """Hand one update on, as factors."""
        received = self.factoring.factors(update.received)
        trained = self.factoring.factors({name: update.trained(name) for name in update.received})
        delta = difference(trained, received)
        self.inner.add(replace(update, form=self.factoring.layout.form, received=received, delta=delta))

    def finish(self, memory: Memory) -> Outcome:
        """The inner result, as parameters."""
        outcome = self.inner.finish(memory)
        return replace(outcome, state=self.factoring.parameters(outcome.state, self.state, self.round))

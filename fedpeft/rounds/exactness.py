"""How far each aggregate lies from the exact one (`fedpeft.aggregation.exactness`), in the round loop."""

from __future__ import annotations

from dataclasses import replace

from fedpeft.aggregation.aggregator import Aggregator
from fedpeft.aggregation.exactness import add_measurement
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.rounds.hooks import RoundHook
from fedpeft.rounds.progress import ServerState
from fedpeft.rounds.round_log import RoundLog
from fedpeft.wiring.setup import Setup


class ExactnessHook(RoundHook):
    """Measures the aggregation error of each round."""

    def __init__(self, setup: Setup) -> None:
        """Hold the parts of the run."""
        self.setup = setup

    def aggregator(self, inner: Aggregator, plan: RoundPlan, state: ServerState) -> Aggregator:
        """Measure `inner` if the error is defined."""
        return add_measurement(inner, self.setup.strategy, self.setup.layout, self.setup.weight_changes)

    def measure(self, state: ServerState, log: RoundLog) -> None:
        """Record the error."""
        log.result = replace(log.result, aggregation_error=log.aggregation.error)


def attach(setup: Setup) -> RoundHook | None:
    """Return the hook of a run whose server sees single updates."""
    return ExactnessHook(setup) if setup.secure_sum is None else None

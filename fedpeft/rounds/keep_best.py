"""The best state and patience in the round loop: keep the best state, and stop once nothing improves any more."""

from __future__ import annotations

from dataclasses import replace

from fedpeft.reporting.observer import Metrics
from fedpeft.rounds.best_state import BestState
from fedpeft.rounds.hooks import RoundHook
from fedpeft.rounds.progress import ServerState
from fedpeft.rounds.round_log import RoundLog, StartLog
from fedpeft.wiring.setup import Setup


class KeepBest(RoundHook):
    """Keeps the state with the best evaluation, and ends the run once patience is over."""

    def __init__(self, setup: Setup) -> None:
        """Hold the parts of the run."""
        self.setup = setup

    def ends(self, state: ServerState) -> str:
        """Return why the run ends: as many evaluations as the patience have found nothing better."""
        patience = self.setup.training_control.patience
        if state.best is None or not 0 < patience <= state.best.since:
            return ""
        return f"no improvement in {patience} evaluations: the run ends here"

    def after_start(self, state: ServerState, log: StartLog) -> ServerState:
        """Keep the start as the best state so far."""
        return self._remember(state, log.metrics)

    def after_step(self, before: ServerState, after: ServerState, log: RoundLog) -> ServerState:
        """Keep the state if it is the best one."""
        return self._remember(after, log.metrics)

    def _remember(self, state: ServerState, metrics: Metrics | None) -> ServerState:
        if metrics is None:
            return state
        evaluated = BestState(state.round, metrics, state.reached_state, state.residual.total)
        by_accuracy = self.setup.task.metric == "accuracy"
        return replace(state, best=state.best.after(evaluated, by_accuracy) if state.best else evaluated)


def attach(setup: Setup) -> RoundHook | None:
    """Return the hook of a run that keeps its best state."""
    return KeepBest(setup) if setup.training_control.keep_best else None

"""`--measure backdoor` in the round loop: how often an attack's trigger works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedpeft.peft.adapter import State
from fedpeft.rounds.hooks import RoundHook
from fedpeft.rounds.progress import ServerState
from fedpeft.rounds.round_log import RoundLog


class BackdoorHook(RoundHook):
    """Scores the trigger in each round that is evaluated; `score` takes a global state and the base's version."""

    def __init__(self, score: Callable[[State, int], float | None]) -> None:
        """Hold the scorer."""
        self.score = score

    def measure(self, state: ServerState, log: RoundLog) -> None:
        """Record the trigger's success beside the accuracy."""
        if log.metrics is not None:
            success = self.score(state.reached_state, state.residual.version)
            log.result = replace(log.result, trigger_success=success)

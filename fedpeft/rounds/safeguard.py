"""The safeguard in the round loop: judge each step by the validation loss, and undo one that raises it too far."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from fedpeft.aggregation.safeguard import Safeguard, SafeguardState
from fedpeft.aggregation.update import describe_nonfinite
from fedpeft.errors import RunError
from fedpeft.peft.adapter import State
from fedpeft.rounds.hooks import RoundHook
from fedpeft.rounds.progress import RunStore, ServerState
from fedpeft.rounds.round_log import RoundLog, StartLog
from fedpeft.wiring.setup import Setup

IN_A_ROW: Final = 3
"""Undone rounds in a row after which the user gets a hint."""

ValidationLoss = Callable[[State, int], float]
"""Returns the validation loss of a global state on the base of a version."""


class FiniteSteps(RoundHook):
    """Ends a run without a safeguard if a step leads to a state that is not finite."""

    def __init__(self, setup: Setup) -> None:
        """Hold the parts of the run."""
        self.setup = setup

    def after_step(self, before: ServerState, after: ServerState, log: RoundLog) -> ServerState:
        """Check the state.

        Raises:
            RunError: it is not finite.
        """
        if broken := describe_nonfinite(self.setup.strategy, after.adapter):
            raise RunError(
                f"FP5206 round {after.round}: {broken}, although every update was finite; start a new run with a "
                "smaller learning rate"
            )
        return after


class SafeguardHook(RoundHook):
    """Undoes steps that raise the validation loss too far.

    An undone step leaves the adapter, the base, the drift states, the clients' forms and the strategy's state as they
    were, and stops the server optimizer's momentum. Example counts, rejections, energy and charges stay.
    """

    def __init__(
        self,
        setup: Setup,
        store: RunStore,
        guard: Safeguard,
        validation_loss: ValidationLoss,
        say: Callable[[str], None],
    ) -> None:
        """Hold the safeguard and the loss that it judges by."""
        self.setup, self.store, self.guard = setup, store, guard
        self.validation_loss, self.say = validation_loss, say
        self._undone_in_a_row, self._hinted = 0, False

    def after_start(self, state: ServerState, log: StartLog) -> ServerState:
        """Judge the start, which later steps are compared with.

        Raises:
            RunError: its validation loss is not finite.
        """
        loss = self.validation_loss(state.adapter, state.residual.version)
        if not math.isfinite(loss):
            raise RunError(
                f"FP5196 the validation loss is {loss:g} before round 1: {self.setup.model_name} gives no "
                f"numbers in {self.setup.config.dtype}; choose another --dtype or --model"
            )
        return replace(state, standing=self.guard.judge(loss, state.standing)[1])

    def after_step(self, before: ServerState, after: ServerState, log: RoundLog) -> ServerState:
        """Judge the step, and undo it if it does not count."""
        loss = self.validation_loss(after.adapter, after.residual.version)
        counts, standing = self.guard.judge(loss, before.standing)
        if counts:
            self._undone_in_a_row = 0
            return replace(after, standing=standing)
        if log.earliest_asked <= before.lowered:  # trained at a rate that has been lowered since
            standing = before.standing
        log.undone = True
        self.store.bases.put(before.residual.version, before.residual.total)
        lowers = standing.rate < before.standing.rate
        self._report(before, after, loss, standing if lowers else None)
        self._hint()
        return replace(before.undo_step(after, standing), lowered=after.round if lowers else before.lowered)

    def _report(self, before: ServerState, after: ServerState, loss: float, lowered: SafeguardState | None) -> None:
        """Tell the user why a step is undone, and the rate that it lowers."""
        broken = describe_nonfinite(self.setup.strategy, after.adapter)
        consequence = ""
        if lowered is not None:
            consequence = f"; from here on clients train at {lowered.rate:.3g} of the learning rate"
            shorter = ", and the server's steps are shorter by the same factor"
            consequence += shorter if self.setup.server_optimizer.pace is None else ""
        self.say(
            f"round {after.round}: undone, since the validation loss would be {loss:.3g}, and the lowest so "
            f"far is {before.standing.lowest:.3g}{broken and f', as {broken}'}{consequence}"
        )

    def _hint(self) -> None:
        """Tell the user once what many undone rounds in a row mean."""
        self._undone_in_a_row += 1
        if self._undone_in_a_row < IN_A_ROW or self._hinted:
            return
        self._hinted = True
        self.say(
            f"{IN_A_ROW} rounds in a row were undone, so the model stays as it was; if this goes on, stop the run and "
            f"start it with a --learning-rate below {self.setup.config.learning_rate:g}, or with less --local-work"
        )


def attach(
    setup: Setup, store: RunStore, validation_loss: ValidationLoss | None, say: Callable[[str], None]
) -> RoundHook:
    """Return the safeguard of a run, or a check of each step if the run has none."""
    guard = setup.training_control.safeguard
    if guard is None or validation_loss is None:
        return FiniteSteps(setup)
    return SafeguardHook(setup, store, guard, validation_loss, say)

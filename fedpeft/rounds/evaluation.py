"""Evaluation of models: on the server's held-out examples, or on the clients' own.

For clients' own models each client counts equally, however many examples it has. For the global model each prediction
counts equally.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.markup import escape

from fedpeft.aggregation.server_optimizer import AVERAGE
from fedpeft.communication.downlink import Versions
from fedpeft.communication.messages import Report
from fedpeft.errors import PayloadError
from fedpeft.models.client_accuracy import compute_worst_tenth
from fedpeft.peft.adapter import State
from fedpeft.reporting.console import format_validation
from fedpeft.reporting.observer import Metrics
from fedpeft.rounds.acceptance import check_evaluation, describe_rejection
from fedpeft.rounds.dispatch import Broadcast
from fedpeft.rounds.exchange import Transport
from fedpeft.rounds.hooks import RoundHook
from fedpeft.rounds.progress import ServerState
from fedpeft.rounds.round_log import RoundLog, StartLog
from fedpeft.rounds.sampling import select_measured_clients
from fedpeft.wiring.setup import Setup

HELD_OUT = 0.2
"""Share of each client's examples that it is evaluated on and does not train on, if clients have their own models."""


@dataclass(frozen=True)
class OwnRows:
    """Mean loss and accuracy over the clients that have held-out rows, and mean accuracy of the worst of them.

    `pooled_loss` and `pooled_accuracy` are means over all predictions.
    """

    loss: float
    accuracy: float
    worst_accuracy: float
    clients: int
    pooled_loss: float
    pooled_accuracy: float


def summarize_own_rows(reports: Sequence[Report], most_weight: float = 0.0) -> OwnRows:
    """Summarize the clients' reports; without held-out examples, return 0 clients and NaN.

    `most_weight` caps a client's weight at that many median clients, whatever it reports; 0: no cap.
    """
    heard = [r for r in reports if r.count > 0]
    if not heard:
        return OwnRows(math.nan, math.nan, math.nan, 0, math.nan, math.nan)
    most = most_weight * statistics.median_low(r.count for r in heard) or math.inf
    believed = [min(1.0, most / r.count) for r in heard]  # the accepted share of each reported count
    predictions = sum(r.count * share for r, share in zip(heard, believed, strict=True))
    accuracies = sorted(r.correct / r.count for r in heard)
    return OwnRows(
        sum(r.loss for r in heard) / len(heard),
        sum(accuracies) / len(heard),
        compute_worst_tenth(accuracies),
        len(heard),
        sum(r.loss * r.count * share for r, share in zip(heard, believed, strict=True)) / predictions,
        sum(r.correct * share for r, share in zip(heard, believed, strict=True)) / predictions,
    )


Evaluate = Callable[[State, int], Metrics | None]
"""Returns the metrics of a global state on the base of a version (`fedpeft.communication.base_residual`)."""


class EvaluationHook(RoundHook):
    """Evaluates the start, and the state after every few rounds.

    Args:
        setup: the parts of the run.
        transport: how the server reaches clients, who evaluate on their own held-out examples.
        evaluate: evaluates a state on the server's examples; None: it has none, and clients evaluate it.
        say: receives messages about evaluations that do not count.
    """

    def __init__(
        self, setup: Setup, transport: Transport, evaluate: Evaluate | None, say: Callable[[str], None]
    ) -> None:
        """Hold the parts that evaluate."""
        self.setup, self.transport, self.evaluate, self.say = setup, transport, evaluate, say

    def after_start(self, state: ServerState, log: StartLog) -> ServerState:
        """Evaluate a start that clients' statistics have made, or that may be the best state."""
        if log.result is None and not self.setup.training_control.keep_best:
            return state
        log.metrics = metrics = self._compute_metrics(state)
        if metrics is not None:
            self.say(f"start   {format_validation(self.setup.task.metric, metrics.loss, metrics.accuracy)}")
        if log.result is not None and metrics is not None:
            log.result = replace(log.result, loss=metrics.loss, accuracy=metrics.accuracy)
        return state

    def after_step(self, before: ServerState, after: ServerState, log: RoundLog) -> ServerState:
        """Evaluate the state if it is time to."""
        number, every = log.plan.number, self.setup.measured.validation.every
        if number == self.setup.rounds or number % every == 0:
            log.metrics = self._compute_metrics(after)
        return after

    def _compute_metrics(self, state: ServerState) -> Metrics | None:
        """Return the metrics of the global state, or of each client's model if they differ."""
        if self.evaluate and not self.setup.personal:
            return self.evaluate(state.reached_state, state.residual.version)
        own = ask_own_rows(self.setup, self.transport, state, self.say)
        if not own.clients:
            return None
        if self.setup.personal:
            return Metrics(own.loss, own.accuracy, own.worst_accuracy)
        return Metrics(own.pooled_loss, own.pooled_accuracy, own.worst_accuracy)


def ask_own_rows(setup: Setup, transport: Transport, state: ServerState, say: Callable[[str], None]) -> OwnRows:
    """Have each client evaluate its model on its own held-out examples; of very many clients, some do.

    This traffic serves measurement and is not counted.
    """
    if AVERAGE in state.memory:
        state = replace(
            state, adapter=state.reached_state, versions=Versions(), held={}
        )  # clients receive the whole state
    sent = Broadcast(setup, state, transport.remote)
    asked = select_measured_clients(setup.clients, setup.config.seed)
    transport.publish(lambda: sent.create_digests("evaluate", state.round))
    instructions = (sent.create_instruction("evaluate", client, state.round) for client in asked)
    valid = []
    for report in transport.send_in_order(instructions, len(asked), "evaluate"):
        try:
            if report.count:
                numbers = setup.task.targets == "numbers"
                check_evaluation(report, setup.predictions, numbers, setup.task.least_loss)
        except PayloadError as error:
            refused = describe_rejection(f"{transport.called(report.client)}'s evaluation does not count", str(error))
            say(escape(refused))
            continue
        valid.append(report)
    return summarize_own_rows(valid, transport.members.most_weight)

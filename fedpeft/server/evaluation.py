"""How models do: on the server's held-out rows, or on the clients' own.

Clients' own models: each client counts equally, however many rows it has. The global model: each prediction does.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.markup import escape

from fedpeft.aggregation.server_optimizer import AVERAGE
from fedpeft.answers.exam import Exam, Said
from fedpeft.communication.downlink import Versions
from fedpeft.communication.messages import Report
from fedpeft.errors import PayloadError
from fedpeft.models.client_accuracy import worst_tenth
from fedpeft.peft.adapter import State
from fedpeft.run.observer import Metrics
from fedpeft.run.setup import Setup
from fedpeft.server.acceptance import check_evaluation, reason_of
from fedpeft.server.best_state import BestState
from fedpeft.server.dispatch import Dispatch
from fedpeft.server.exchange import Exchange
from fedpeft.server.progress import Progress
from fedpeft.server.sampling import measured

HELD_OUT = 0.2
"""Share of each client's rows that it is evaluated on and does not train on, where clients have models of their own."""


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


def own_rows(reports: Sequence[Report], most_weight: float = 0.0) -> OwnRows:
    """The summary of the clients' reports; 0 clients and not-a-number where nobody has held-out rows.

    `most_weight`: a client counts at most as much as so many median clients, whatever it says of its rows; 0: no limit.
    """
    heard = [r for r in reports if r.count > 0]
    if not heard:
        return OwnRows(math.nan, math.nan, math.nan, 0, math.nan, math.nan)
    most = most_weight * statistics.median_low(r.count for r in heard) or math.inf
    believed = [min(1.0, most / r.count) for r in heard]  # shares of what each says
    predictions = sum(r.count * share for r, share in zip(heard, believed, strict=True))
    accuracies = sorted(r.correct / r.count for r in heard)
    return OwnRows(
        sum(r.loss for r in heard) / len(heard),
        sum(accuracies) / len(heard),
        worst_tenth(accuracies),
        len(heard),
        sum(r.loss * r.count * share for r, share in zip(heard, believed, strict=True)) / predictions,
        sum(r.correct * share for r, share in zip(heard, believed, strict=True)) / predictions,
    )


@dataclass(frozen=True)
class Examiner:
    """Asks the global model what `--measure evaluate` wants, every few rounds.

    Attributes:
        exam: the questions.
        every: rounds between two times.
        answers: what a global state on the base of a version says to them.
    """

    exam: Exam
    every: int
    answers: Callable[[Exam, State, int], list[Said]]

    def line(self, progress: Progress) -> dict[str, Any]:
        """Of evaluations.jsonl: the round, the measures, and each question with its right answers and what was said."""
        said = self.answers(self.exam, progress.reached, progress.residual.version)
        asked = [
            {"question": question.asked, "right": list(question.right), "said": texts[0]}
            for question, texts in zip(self.exam.questions, said, strict=True)
        ]
        return {"round": progress.round, **self.exam.measures(said), "answers": asked}


Evaluate = Callable[[State, int], Metrics | None]
"""Metrics of a global state on the base of a version (`fedpeft.communication.base_residual`)."""


@dataclass(frozen=True)
class Evaluation:
    """Evaluates what a round has led to.

    Attributes:
        setup: the run's.
        clients: are asked for their own rows.
        evaluate: on the server's rows; None: it has none, and the global model is evaluated on the clients' own
            held-out rows, as far as there are any.
        say: is told of evaluations that do not count, and what answers are worth.
        examiner: asks the global model questions; None: nobody does.
        most_weight: see `own_rows`.
    """

    setup: Setup
    clients: Exchange
    evaluate: Evaluate | None
    say: Callable[[str], None]
    examiner: Examiner | None = None
    most_weight: float = 0.0

    def examined(self, progress: Progress, round: int) -> dict[str, list[dict[str, Any]]]:
        """The line of evaluations.jsonl that is due after `round`, by the file's name; empty: none is."""
        examiner = self.examiner
        if examiner is None or (round % examiner.every and round != self.setup.rounds):
            return {}
        line = examiner.line(progress)
        told = ", ".join(f"{name} {value:.3f}" for name, value in line.items() if name not in ("round", "answers"))
        self.say(f"round {round}: {told} of {len(line['answers'])} questions")
        return {"evaluations.jsonl": [line]}

    def of(self, progress: Progress) -> Metrics | None:
        """The global model on held-out rows; where clients keep tensors of their own, each client on its own rows."""
        if self.evaluate and not self.setup.personal:
            return self.evaluate(progress.reached, progress.residual.version)
        own = self.own_rows(progress)
        if not own.clients:
            return None
        if self.setup.personal:
            return Metrics(own.loss, own.accuracy, own.worst_accuracy)
        return Metrics(own.pooled_loss, own.pooled_accuracy, own.worst_accuracy)

    def remembered(self, progress: Progress, metrics: Metrics | None) -> Progress:
        """With this state, evaluated, as the best if it is, and where the best is kept."""
        if metrics is None or not self.setup.steering.keep_best:
            return progress
        found = BestState(progress.round, metrics, progress.reached, progress.residual.total)
        best = progress.best.after(found, self.setup.task.metric == "accuracy") if progress.best else found
        return replace(progress, best=best)

    def own_rows(self, progress: Progress) -> OwnRows:
        """Each client's model on its own held-out rows; of very many clients, some (`sampling.measured`).

        What this sends serves measurement and is not counted.
        """
        if AVERAGE in progress.memory:
            progress = replace(progress, adapter=progress.reached, versions=Versions(), held={})  # sent whole
        sent = Dispatch(self.setup, progress, self.clients.remote)
        asked = measured(self.setup.clients, self.setup.config.seed)
        self.clients.publish(lambda: sent.release("evaluate", progress.round))
        instructions = (sent.instruction("evaluate", client, progress.round) for client in asked)
        heard = []
        for report in self.clients.in_order(instructions, len(asked), "evaluate"):
            try:
                if report.count:
                    check_evaluation(report, self.setup.predictions, self.setup.task.targets == "numbers")
            except PayloadError as error:
                said = reason_of(f"{self.clients.called(report.client)}'s evaluation does not count", str(error))
                self.say(escape(said))
                continue
            heard.append(report)
        return own_rows(heard, self.most_weight)

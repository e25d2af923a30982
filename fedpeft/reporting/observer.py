"""Observers of a run in progress, with the evaluations and finished rounds that they receive."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Metrics:
    """The result of an evaluation.

    If clients have models of their own, the values are means over clients.

    Attributes:
        loss: mean loss per prediction.
        accuracy: share of correct predictions.
        worst_accuracy: accuracy of the worst tenth of the clients; None: clients share one model.
        predictions: number of predictions, about one per example; 0: unknown.
    """

    loss: float
    accuracy: float
    worst_accuracy: float | None = None
    predictions: float = 0.0


LARGEST_LOSS = 700.0
"""The largest loss, in nats per token, whose perplexity is finite."""


def compute_perplexity(loss: float) -> float:
    """Return exp of a loss in nats per token; losses above `LARGEST_LOSS` count as `LARGEST_LOSS`.

    Only diverged runs have such losses.
    """
    return math.exp(min(loss, LARGEST_LOSS))


def get_main_metric(metric: str, loss: float | None, accuracy: float | None) -> tuple[str, float | None]:
    """Return the main metric of a run, with spaces in its name, and its value; None: unknown, or not a number.

    Args:
        metric: the task's metric (`fedpeft.models.task.Task.metric`).
        loss: loss of `Metrics` or `RoundResult`.
        accuracy: accuracy of `Metrics` or `RoundResult`.
    """
    name, value = metric.replace("_", " "), accuracy
    if metric == "perplexity":
        value = compute_perplexity(loss) if loss is not None and loss < LARGEST_LOSS else None
    return name, value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class RoundResult:
    """A finished round: one line of `rounds.jsonl`.

    Attributes:
        round: the round, from 1; 0 for the preparation.
        clients: clients in the round, also those whose updates were left out; the expected number if the cohort is
            secret.
        rejected: clients whose updates were left out; 0 if the cohort is secret.
        train_loss: mean training loss over the cohort's examples.
        loss: mean validation loss per prediction; None: the round has no evaluation.
        accuracy: validation accuracy; None: the round has no evaluation.
        uplink_bytes: lengths of the payloads from the clients; those of the expected number if the cohort is secret.
        downlink_bytes: lengths of the payloads to the clients; those of the expected number if the cohort is secret.
        update_norm: norm of the adapter's step.
        training_seconds: time without evaluation; None: the cohort is secret.
        seconds: time with evaluation; None: the cohort is secret.
        base_norm: norm of what went into the base.
        worst_accuracy: accuracy of the worst tenth of the clients, if clients have models of their own.
        aggregation_seconds: the server's own time, from decoding to the next global state; None: the cohort is secret.
        aggregation_error: see `fedpeft.aggregation.exactness`; None: not defined for this adapter.
        learning_rate: the clients' learning rate in the round.
        undone: whether the safeguard has undone the step; then only its costs count.
        cancelled_share: see `fedpeft.trust.disagreement`; None: not measured.
        sign_conflict: see `fedpeft.trust.disagreement`; None: not measured.
        joules: energy of the clients; None: not measured.
        grams: grams of CO2 of the clients; None: not measured.
        measured_joules: energy that the server's machine has used in the round; None: not measured.
        trigger_success: share of the validation examples of other classes that an attack's trigger leads to the target
            class; None: not measured.
    """

    round: int
    clients: int
    rejected: int
    train_loss: float | None
    loss: float | None
    accuracy: float | None
    uplink_bytes: int
    downlink_bytes: int
    update_norm: float
    training_seconds: float | None
    seconds: float | None
    base_norm: float = 0.0
    worst_accuracy: float | None = None
    aggregation_seconds: float | None = 0.0
    aggregation_error: float | None = None
    learning_rate: float | None = None
    undone: bool = False
    cancelled_share: float | None = None
    sign_conflict: float | None = None
    joules: float | None = None
    grams: float | None = None
    measured_joules: float | None = None
    trigger_success: float | None = None

    def hide_cohort(self, expected: int) -> RoundResult:
        """Return the public part of a round with a secret cohort, which has `expected` clients on average.

        The caller sets the bytes, to those of that many clients.
        """
        return replace(
            self, clients=expected, rejected=0, training_seconds=None, seconds=None, aggregation_seconds=None
        )


class Observer(Protocol):
    """An observer of a run's progress."""

    def begin_rounds(self, rounds: int, done: int) -> None:
        """Begin the rounds, of which `done` are done already."""

    def client_done(self, phase: str, done: int, total: int) -> None:
        """Report how many clients of a phase ("prepare" or "train") have answered; the first call reports none."""

    def begin_part(self, part: str = "") -> None:
        """Begin a part of the running round, or of the work before round 1; an empty name: clients are at work."""

    def round_done(self, result: RoundResult) -> bool | None:
        """Report a finished and recorded round; return True to stop the run."""

    def say(self, text: str) -> None:
        """Report a message for the user."""


class RunObserver(Observer, Protocol):
    """An observer that also follows the work before the rounds and after them."""

    def phase(self, name: str, total: int) -> None:
        """Begin a phase of `total` steps; 0: a wait for others."""

    def enter(self, name: str, total: int = 1) -> None:
        """Begin a phase of `total` steps that gets no line of its own, unless it takes long."""

    def advance(self, steps: int = 1) -> None:
        """Count finished steps of the phase."""


def announce_validation(observer: Observer, work: Callable[P, T] | None) -> Callable[P, T] | None:
    """Return `work` so that it first reports to the observer; None: there is no work."""
    if work is None:
        return None

    def announce_and_work(*given: P.args, **named: P.kwargs) -> T:
        observer.begin_part("validation")
        return work(*given, **named)

    return announce_and_work

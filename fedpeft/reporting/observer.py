"""What is known of a run while it goes on: evaluations, finished rounds, and who is told of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Metrics:
    """What an evaluation found: mean loss per prediction and share of correct ones.

    Where clients have models of their own, means over clients; `worst_accuracy` is that of the worst tenth of them.
    `predictions` is how many there were, about one a row; 0: not known.
    """

    loss: float
    accuracy: float
    worst_accuracy: float | None = None
    predictions: float = 0.0


LARGEST_LOSS = 700.0
"""Nats a token whose perplexity is still a number."""


def compute_perplexity(loss: float) -> float:
    """exp of a loss in nats a token; of one beyond `LARGEST_LOSS`, which only diverged runs have, that of it."""
    return math.exp(min(loss, LARGEST_LOSS))


def get_main_metric(metric: str, loss: float | None, accuracy: float | None) -> tuple[str, float | None]:
    """What a run is judged by, as its users call it, and its value; None: it is not known, or no number.

    Args:
        metric: the task's (`fedpeft.models.task.Task.metric`).
        loss, accuracy: as `Metrics` and `RoundResult` have them.
    """
    name, value = metric.replace("_", " "), accuracy
    if metric == "perplexity":
        value = compute_perplexity(loss) if loss is not None and loss < LARGEST_LOSS else None
    return name, value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class RoundResult:
    """A finished round: what `rounds.jsonl` holds a line of.

    Losses are means over the cohort's rows; bytes are the lengths of real payloads; `update_norm` is the norm of the
    adapter's step, `base_norm` that of what went into the base; `seconds` includes evaluation, `training_seconds` does
    not. `aggregation_seconds` is the server's own time, from decoding to the next global state; `aggregation_error` is
    defined in `fedpeft.aggregation.exactness` (None: not for this adapter). `learning_rate` is the clients' of the
    round; a step that the safeguard has `undone` counts for nothing but what it has cost. `cancelled_share` and
    `sign_conflict` are defined in `fedpeft.trust.disagreement` (None: nobody looked). `joules` and `grams` are the
    clients', `measured_joules` what the server's machine has used meanwhile (None: nobody counts).

    Where a cohort is secret its size is, too: then `clients` is the expected number, bytes are those that as many would
    have sent and been sent, nothing counts as rejected, and times are not told.
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

    def hide_cohort(self, expected: int) -> RoundResult:
        """What may be told where the cohort is a secret, and `expected` clients are in one on average.

        Bytes are the caller's: what so many would have sent.
        """
        return replace(
            self, clients=expected, rejected=0, training_seconds=None, seconds=None, aggregation_seconds=None
        )


class Observer(Protocol):
    """Is told how a run goes on."""

    def started(self, rounds: int, done: int) -> None:
        """Before the first round that is still to do."""

    def client_done(self, phase: str, done: int, total: int) -> None:
        """So many of the clients that are asked for a phase ("prepare" or "train") have answered; first none."""

    def doing(self, part: str = "") -> None:
        """A part of the running round, or of what comes before the first, begins; no name: clients are at work."""

    def round_done(self, result: RoundResult) -> bool | None:
        """A round is finished and recorded; True: it shall be the last one."""

    def say(self, text: str) -> None:
        """Something that the user should know."""


class RunObserver(Observer, Protocol):
    """Is also told about the work before the rounds and after them."""

    def phase(self, name: str, total: int) -> None:
        """A phase of `total` steps begins; of 0: others are waited for."""

    def enter(self, name: str, total: int = 1) -> None:
        """A phase of `total` steps begins that has no line of its own, unless it takes long."""

    def advance(self, steps: int = 1) -> None:
        """Steps of the phase are done."""


def announce_validation(observer: Observer, work: Callable[P, T] | None) -> Callable[P, T] | None:
    """`work`, with a word to the observer whenever it begins; None: there is none."""
    if work is None:
        return None

    def told(*given: P.args, **named: P.kwargs) -> T:
        observer.doing("validation")
        return work(*given, **named)

    return told

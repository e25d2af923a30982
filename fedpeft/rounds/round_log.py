"""The log of a round: what the server sends, receives and measures before it records the round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedpeft.aggregation.aggregator import AggregationResult
from fedpeft.communication.downlink import SentState
from fedpeft.communication.messages import Report
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.reporting.observer import Metrics, RoundResult
from fedpeft.rounds.acceptance import ReportReceiver
from fedpeft.rounds.clock import Clock

if TYPE_CHECKING:
    from fedpeft.rounds.dispatch import Broadcast


@dataclass
class StartLog:
    """The log of the preparation.

    Attributes:
        clock: its times.
        result: its line of rounds.jsonl; None: no statistics were collected, and it has none.
        metrics: of the start; None: it is not evaluated.
        lines: further lines of record files, by file name.
    """

    clock: Clock
    result: RoundResult | None = None
    metrics: Metrics | None = None
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass
class RoundLog:
    """The log of one round, filled in step by step.

    Attributes:
        plan: the cohort and its terms.
        broadcast: makes what each client receives.
        clock: the times of the round.
        note_report: is called with each report, valid or not.
        sent: what each client of the cohort receives.
        received: the reports, and which updates were accepted.
        aggregation: what the accepted updates lead to.
        result: the line of rounds.jsonl, which the observer receives.
        undone: whether the safeguard has undone the step.
        metrics: of the state after the round; None: it is not evaluated.
        lines: further lines of record files, by file name.
    """

    plan: RoundPlan
    broadcast: Broadcast
    clock: Clock
    note_report: Callable[[Report], None]
    sent: list[SentState] = field(default_factory=list)
    received: ReportReceiver = field(init=False)
    aggregation: AggregationResult = field(init=False)
    result: RoundResult = field(init=False)
    undone: bool = False
    metrics: Metrics | None = None
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def earliest_asked(self) -> int:
        """The earliest round in which a client of an accepted update was asked."""
        return min(self.received.accepted.values(), default=self.plan.number)

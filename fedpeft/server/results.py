"""What is told of a round."""

from __future__ import annotations

from fedpeft.aggregation.aggregator import AggregationResult
from fedpeft.peft.adapter import difference, norm
from fedpeft.run.observer import Metrics, RoundResult
from fedpeft.server.acceptance import Acceptance
from fedpeft.server.clock import Clock
from fedpeft.server.progress import Progress
from fedpeft.server.traffic import Traffic


def round_result(
    before: Progress,
    outcome: AggregationResult,
    taken: Acceptance,
    traffic: Traffic,
    metrics: Metrics | None,
    clock: Clock,
    expected: int | None = None,
    counted: bool = True,
) -> RoundResult:
    """A line of `rounds.jsonl`.

    Args:
        before: the server before the round.
        outcome: what it has led to.
        taken: its reports.
        traffic: its bytes.
        metrics: of the state after it; None: it was not evaluated.
        clock: its times.
        expected: how many take part on average, where nobody may know how many do; None: they may.
        counted: whether all may know how many updates were left out.
    """
    result = RoundResult(
        round=taken.round,
        clients=len(taken.results),
        rejected=len(taken.results) - len(taken.accepted) if counted else 0,
        train_loss=taken.train_loss,
        loss=metrics.loss if metrics else None,
        accuracy=metrics.accuracy if metrics else None,
        uplink_bytes=traffic.uplink_bytes,
        downlink_bytes=traffic.downlink_bytes,
        update_norm=norm(difference(outcome.state, before.adapter)),
        training_seconds=clock.training_seconds,
        seconds=clock.seconds,
        base_norm=sum(r.norm() ** 2 for r in outcome.residuals.values()) ** 0.5,
        worst_accuracy=metrics.worst_accuracy if metrics else None,
        aggregation_seconds=clock.aggregating.seconds,
        aggregation_error=outcome.error,
        cancelled_share=outcome.disagreement.cancelled if outcome.disagreement else None,
        sign_conflict=outcome.disagreement.conflict if outcome.disagreement else None,
    )
    return result if expected is None else result.of_secret_cohort(expected)

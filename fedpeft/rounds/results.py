"""The public part of a round's log."""

from __future__ import annotations

from fedpeft.peft.adapter import compute_norm, subtract_states
from fedpeft.reporting.observer import RoundResult
from fedpeft.rounds.progress import ServerState
from fedpeft.rounds.round_log import RoundLog
from fedpeft.rounds.traffic import Traffic


def create_round_result(before: ServerState, log: RoundLog, traffic: Traffic) -> RoundResult:
    """Return the line of rounds.jsonl, which hooks may add to.

    Args:
        before: the state before the round.
        log: of the round.
        traffic: its bytes.
    """
    received, metrics, clock = log.received, log.metrics, log.clock
    return RoundResult(
        round=log.plan.number,
        clients=len(received.results),
        rejected=len(received.results) - len(received.accepted),
        train_loss=received.train_loss,
        loss=metrics.loss if metrics else None,
        accuracy=metrics.accuracy if metrics else None,
        uplink_bytes=traffic.uplink_bytes,
        downlink_bytes=traffic.downlink_bytes,
        update_norm=compute_norm(subtract_states(log.aggregation.state, before.adapter)),
        training_seconds=clock.training_seconds,
        seconds=clock.seconds,
        base_norm=sum(r.norm() ** 2 for r in log.aggregation.residuals.values()) ** 0.5,
        worst_accuracy=metrics.worst_accuracy if metrics else None,
        aggregation_seconds=clock.aggregating.seconds,
        learning_rate=log.broadcast.get_learning_rate(log.plan.number),
        undone=log.undone,
    )

"""The exchange before round 1: clients' statistics of their frozen features, from whose sum the head starts."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from typing import Any

from fedpeft.aggregation.update import Fold
from fedpeft.clients.label_shift import SHARES, shares_of
from fedpeft.communication.decoding import decode
from fedpeft.communication.messages import Instruction
from fedpeft.communication.release import Release, common_digest
from fedpeft.errors import PayloadError, RunError
from fedpeft.peft.adapter import State
from fedpeft.run.observer import RoundResult
from fedpeft.run.records import plain
from fedpeft.run.setup import Setup
from fedpeft.server.acceptance import check_report, check_statistics
from fedpeft.server.evaluation import Evaluation
from fedpeft.server.exchange import Exchange
from fedpeft.server.progress import Counters, Progress


def prepare(
    setup: Setup, clients: Exchange, evaluation: Evaluation, fixed: dict[str, Any], most_rows: float = math.inf
) -> Progress:
    """The server before round 1.

    Args:
        setup, clients, evaluation: the run's.
        fixed: what was probed at the start, kept in the checkpoint.
        most_rows: statistics of a client with more rows count as if they were those of so many.

    Raises:
        RunError: no client has returned valid statistics.
    """
    state = dict(setup.start)
    drift = setup.drift.start(state)
    progress = Progress(round=0, adapter=state, started=_copy(state), drift=drift, fixed=dict(fixed))
    if not (setup.head.exchanges and "head.weight" in state):
        return evaluation.remembered(progress, evaluation.of(progress)) if setup.steering.keep_best else progress
    started = time.perf_counter()
    rows, spent, total = _statistics(setup, clients, most_rows)
    head = setup.head.solve(total, state["head.weight"].shape[1], setup.facts.classes)
    state |= {name: tensor.to(state[name].dtype) for name, tensor in head.items()}
    shares = {SHARES: shares_of(setup.head.class_counts(total))} if setup.drift.needs_shares else {}
    progress = replace(
        progress,
        adapter=state,
        shares=shares,
        started=_copy(state),
        rows=rows,
        counters=Counters(uplink_bytes=spent, prepare_bytes=spent),
    )
    prepared_at = time.perf_counter()
    metrics = evaluation.of(progress)
    result = RoundResult(
        round=0,
        clients=setup.clients,
        rejected=setup.clients - len(rows),
        train_loss=None,
        loss=metrics.loss if metrics else None,
        accuracy=metrics.accuracy if metrics else None,
        uplink_bytes=spent,
        downlink_bytes=0,
        update_norm=0.0,
        training_seconds=prepared_at - started,
        seconds=time.perf_counter() - started,
    )
    return replace(evaluation.remembered(progress, metrics), lines={"rounds.jsonl": [plain(asdict(result))]})


def _copy(state: State) -> State:
    """Of its own memory, as safetensors wants what it saves."""
    return {name: tensor.clone() for name, tensor in state.items()}


def _statistics(setup: Setup, clients: Exchange, most_rows: float) -> tuple[dict[int, int], int, State]:
    """The rows of each client whose statistics are taken, the bytes of all, and the sum of those taken."""
    width, count = setup.start["head.weight"].shape[1], setup.clients
    instructions = (
        Instruction("prepare", 0, client, b"", base_precision=setup.profiles[client].base) for client in range(count)
    )
    if clients.announce is not None:
        clients.announce(Release("prepare", 0, common=common_digest(Instruction("prepare", 0, 0, b""))))
    rows: dict[int, int] = {}
    spent, total = 0, Fold()
    for report in clients.in_order(instructions, count, "prepare"):
        spent += len(report.payload)
        try:
            check_report(report)
            shapes = setup.head.shapes(width, setup.facts.classes, report.rows)
            statistics = decode(report.payload, shapes)
            check_statistics(statistics, shapes, report.rows)
        except PayloadError:
            continue
        total.add(setup.head.additive(statistics), min(1.0, most_rows / report.rows))
        rows[report.client] = report.rows
    if not rows:
        raise RunError(f"none of {count} clients returned valid statistics for the start of the head")
    return rows, spent, total.sums

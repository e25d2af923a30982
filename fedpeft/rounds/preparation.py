"""The exchange before round 1: clients send statistics of their frozen features, and the head starts from their sum.

In a very large population, only some clients are asked (`fedpeft.rounds.sampling.select_measured_clients`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from rich.markup import escape
from torch import Tensor

from fedpeft.aggregation.head_start import (
    VARIANCE,
    HidesClasses,
    check_solved,
    convert_to_summands,
    require_variation,
)
from fedpeft.aggregation.update import Fold
from fedpeft.clients.drift import SHARES
from fedpeft.clients.label_shift import check_counts, compute_class_shares, find_label_skew
from fedpeft.communication.broadcast_digests import BroadcastDigests, compute_common_digest
from fedpeft.communication.decoding import decode
from fedpeft.communication.messages import Instruction, Report
from fedpeft.communication.payload import Shape, count_entries
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.errors import ConfigError, PayloadError, RunError
from fedpeft.parts import name_of
from fedpeft.peft.adapter import State
from fedpeft.privacy.abilities import is_whitened
from fedpeft.privacy.engine import PrivacyEngine
from fedpeft.privacy.secure_sum.cohorts import FEWEST
from fedpeft.privacy.secure_sum.contribution import BESIDE, Total, count_tensor_entries
from fedpeft.privacy.secure_sum.coordinator import VoidError
from fedpeft.privacy.secure_sum.sum import SecureSum
from fedpeft.reporting.observer import RoundResult
from fedpeft.rounds.acceptance import check_report, check_statistics, describe_rejection
from fedpeft.rounds.clock import Clock
from fedpeft.rounds.exchange import Transport
from fedpeft.rounds.masked_sum import WEIGHTS, MaskedSum
from fedpeft.rounds.progress import ServerState
from fedpeft.rounds.round_log import StartLog
from fedpeft.rounds.sampling import select_measured_clients
from fedpeft.rounds.traffic import Counters

if TYPE_CHECKING:
    from fedpeft.wiring.setup import Setup


def prepare(
    setup: Setup,
    clients: Transport,
    fixed: dict[str, Any],
    privacy: PrivacyEngine | None,
    say: Callable[[str], None],
    plan_start: Callable[[RoundPlan, ServerState], RoundPlan],
    note_report: Callable[[Report], None],
) -> tuple[ServerState, StartLog]:
    """Return the state before round 1, and the log of its preparation.

    Args:
        setup: the parts of the run.
        clients: transport to the clients.
        fixed: run constants that were measured at the start, for the checkpoint.
        privacy: adds the server's noise; None: nothing is protected.
        say: receives messages about what the statistics lack.
        plan_start: has hooks change the plan; privacy charges what the clients release, before they are asked.
        note_report: is called with each report, valid or not.

    Raises:
        RunError: no client has returned valid statistics.
        ConfigError: the statistics lack what the run needs.
        PrivacyError: budgets do not allow the release.
    """
    log, state = StartLog(Clock()), dict(setup.start)
    drift = setup.drift.start(state)
    progress = ServerState(round=0, adapter=state, started=_copy(state), drift=drift, fixed=dict(fixed))
    asks = setup.head.exchanges and "head.weight" in state
    if not asks and (setup.secure_sum is None or setup.secure_sum.noisy):
        if setup.secure_sum is not None:  # its clients know C without a sum
            progress = replace(progress, clip=1.0)
        return progress, log
    asked = setup.clients
    plan = plan_start(RoundPlan(0, select_measured_clients(asked, setup.config.seed), kind="prepare"), progress)
    if privacy is None and setup.secure_sum is None:
        asked = len(plan.cohort)
    rows: dict[int, int] = {}
    counts: list[Tensor] = []
    down, clip = 0, None
    if setup.secure_sum is None:
        rows, spent, total, counts = _collect_statistics(setup, clients, plan, privacy, note_report)
        missing = asked - len(rows)
    else:
        masked, summed = _collect_masked_statistics(setup, setup.secure_sum, clients, plan, asks, note_report, say)
        masked.tell(say)
        clip = _first_clip(setup, setup.secure_sum, summed)
        if summed is None:
            asks, missing = False, asked
        else:
            total = _read_statistics(setup, setup.secure_sum, masked, summed, asks)
            missing = asked - len(masked.arrived)
            if setup.by_rows and setup.facts.tasks is None:  # a task's examples differ from round to round
                progress = replace(progress, fixed=progress.fixed | {WEIGHTS: [summed.weight, len(masked.arrived)]})
        spent, down = sum(masked.received.values()), sum(masked.sent.values())
    told: State = {}
    if asks:
        state |= _compute_head(setup, total, say)
        told = _compute_broadcast_tensors(setup, total, counts, say)
    progress = replace(
        progress,
        adapter=state,
        told=told,
        started=_copy(state),
        rows=rows,
        counters=Counters(uplink_bytes=spent, downlink_bytes=down, prepare_bytes=spent),
        clip=clip,
    )
    log.clock.note_step()
    log.result = _create_result(progress, asked, 0 if _is_secret(privacy) else missing, log.clock.training_seconds)
    return progress, log


def _create_result(progress: ServerState, clients: int, missing: int, seconds: float) -> RoundResult:
    """Return the line of rounds.jsonl about the preparation, without metrics."""
    return RoundResult(
        round=0,
        clients=clients,
        rejected=missing,
        train_loss=None,
        loss=None,
        accuracy=None,
        uplink_bytes=progress.counters.uplink_bytes,
        downlink_bytes=progress.counters.downlink_bytes,
        update_norm=0.0,
        training_seconds=seconds,
        seconds=seconds,
    )


def _compute_head(setup: Setup, total: State, say: Callable[[str], None]) -> State:
    """Return the head that is computed from the sums over all clients."""
    if isinstance(setup.head, HidesClasses) and (hidden := setup.head.find_hidden_classes(total)):
        names = setup.facts.label_names or ()
        say(
            f"the noise of the start hides {len(hidden)} classes, which the head begins without: "
            f"{_list_names(names, hidden)}"
        )
    weight = setup.start["head.weight"]
    head = setup.head.solve(total, weight.shape[1], weight.shape[0])
    check_solved(setup.head, head, setup.start)
    return {name: tensor.to(setup.start[name].dtype) for name, tensor in head.items()}


def _compute_broadcast_tensors(
    setup: Setup, total: State, counts: Sequence[Tensor], say: Callable[[str], None]
) -> State:
    """Return the broadcast tensors, computed from the sums over all clients.

    `counts` holds the examples per class of each client that counts.
    """
    if is_whitened(setup.mechanism):
        return require_variation(setup.head).compute_whitening(total, setup.start["head.weight"].shape[1]).state
    if not setup.drift.needs_shares:
        return {}
    least = setup.drift.least_skew
    shares = setup.head.class_counts(total)
    if not (shares.numel() or least):
        raise ConfigError(
            "FP1406 label_shift needs the number of examples per class, which the statistics of "
            f"head={name_of(type(setup.head))} do not contain; use --head ridge, or leave label_shift out of "
            "--drift"
        )
    if least:
        skew = find_label_skew(counts, least)
        if skew is None:
            return {}
        say(f"clients hold different classes (label skew {skew:.2f}): local steps are corrected for that (label_shift)")
    return {SHARES: compute_class_shares(shares)}


def _copy(state: State) -> State:
    """Return copies with their own memory, which safetensors requires."""
    return {name: tensor.clone() for name, tensor in state.items()}


def _is_secret(privacy: PrivacyEngine | None) -> bool:
    """Return whether cohort membership is secret."""
    return privacy is not None and privacy.mechanism.secret_cohort


def _list_names(names: Sequence[str], of: Sequence[int]) -> str:
    """Return the first five of these names."""
    return ", ".join(names[i] for i in of[:5]) + (", ..." if len(of) > 5 else "")


def _announce(clients: Transport) -> None:
    """Announce the question of the preparation to all clients."""
    asked = Instruction("prepare", 0, 0, b"")
    clients.publish(lambda: BroadcastDigests("prepare", 0, common=compute_common_digest(asked)))


def _collect_statistics(
    setup: Setup,
    clients: Transport,
    plan: RoundPlan,
    privacy: PrivacyEngine | None,
    note_report: Callable[[Report], None],
) -> tuple[dict[int, int], int, State, list[Tensor]]:
    """Collect the clients' statistics.

    Returns:
        The example counts of clients whose statistics are accepted; the bytes of all reports; the sum of the accepted
        statistics; and the examples per class of each accepted client, if the drift correction needs them and the head
        provides them.
    """
    outputs, width = setup.start["head.weight"].shape
    count, most_rows = len(plan.cohort), clients.most_rows()
    instructions = (
        Instruction("prepare", 0, k, b"", base_precision=setup.profiles[k].base, attempt=plan.attempt)
        for k in plan.cohort
    )
    _announce(clients)
    rows: dict[int, int] = {}
    spent, total, why = 0, Fold(), ""
    counts: list[Tensor] = []
    for report in clients.send_in_order(instructions, count, "prepare"):
        spent += len(report.payload)
        note_report(report)
        try:
            check_report(report)
            shapes = setup.head.shapes(width, outputs, report.rows)
            statistics = decode(report.payload, shapes, agreed=setup.statistics.steps)
            check_statistics(statistics, shapes, report.rows)
            taken = convert_to_summands(setup.head, statistics)
            if setup.drift.needs_shares and (own := setup.head.class_counts(taken)).numel():
                check_counts(own, report.rows)
                counts.append(own)
        except PayloadError as error:
            why = why or describe_rejection(clients.called(report.client), str(error))
            continue
        if privacy is None:
            total.add(taken, min(1.0, most_rows / report.rows))
        else:
            total.add(privacy.clip_statistics(taken), 1.0)
        rows[report.client] = report.rows
    if not rows:
        head = name_of(type(setup.head))
        raise RunError(
            f"FP5197 none of {count} clients returned valid statistics for the start of the head, {head}; {why}"
        )
    sums = total.sums if privacy is None else privacy.finish_statistics(total.sums, plan.attempt)
    return rows, spent, sums, counts


def _collect_masked_statistics(
    setup: Setup,
    secure: SecureSum,
    clients: Transport,
    plan: RoundPlan,
    asks: bool,
    note_report: Callable[[Report], None],
    say: Callable[[str], None],
) -> tuple[MaskedSum, Total | None]:
    """Return the secure sum over all clients and its total; None: the sum is void, and the run begins without it.

    There is a sum whatever the head, since it provides the clients' weights. If it fails before a vector has arrived,
    the server tries again without the clients that failed first. Afterwards, clients take part in no second sum: the
    difference of two sums would reveal one client's statistics. The sum is then void, as in a round.

    Raises:
        RunError: no vector has arrived, or the run needs the sum.
    """
    shapes = _summed_shapes(setup, secure, asks)
    if secure.noisy:
        cohort, size, numbers = plan.cohort, count_tensor_entries(shapes), BESIDE
    else:
        cohort = clients.under_way(0) or clients.list_joined(setup.clients)
        size, numbers = 0, count_tensor_entries(shapes) + BESIDE
    asked = [
        Instruction("prepare", 0, client, b"", base_precision=setup.profiles[client].base, attempt=plan.attempt)
        for client in cohort
    ]
    while True:
        _announce(clients)
        masked = MaskedSum(clients, secure, setup.config.seed, 0, size, numbers, 1.0, heard=note_report)
        try:
            return masked, masked.compute_total(asked, "prepare", setup.by_rows)
        except VoidError as error:
            if masked.arrived and not (asks and (missed := _find_part_with_statistics(setup))):
                say(
                    f"before round 1: {escape(str(error))}; the federation begins without statistics of its clients' "
                    "examples: the head keeps its start"
                )
                return masked, None
            clients.forget_sum()
            if masked.arrived:
                raise RunError(
                    f"FP5252 the sum over the clients before round 1 is void, and {missed} needs it: {error}; "
                    "begin another federation, without the client that caused this"
                ) from error
            left = [instruction for instruction in asked if instruction.client in set(masked.sharing_clients)]
            if secure.noisy or not FEWEST <= len(left) < len(asked):
                raise RunError(f"FP5198 there is no sum over the clients before round 1: {error}") from error
            why = "; ".join(f"{clients.called(k)}: {masked.failed[k]}" for k in sorted(masked.failed)[:1])
            say(f"before round 1: {escape(f'{error}; {why}')}; the server asks the other {len(left)} clients again")
            asked = left


def _find_part_with_statistics(setup: Setup) -> str:
    """Return the part that needs the clients' statistics before round 1; empty: the run can begin without them."""
    if is_whitened(setup.mechanism):
        return f"--privacy {setup.config.privacy}"
    if setup.drift.needs_shares and not setup.drift.least_skew:
        return f"--drift {setup.config.drift}"
    if "head.weight" not in setup.strategy.list_trained(setup.layout, 1):
        return f"--head {setup.config.head}"
    return ""


def _summed_shapes(setup: Setup, secure: SecureSum, asks: bool) -> dict[str, Shape]:
    if secure.noisy:
        return setup.noised_shapes
    return setup.statistics_shapes if asks else {}


def _read_statistics(setup: Setup, secure: SecureSum, masked: MaskedSum, total: Total, asks: bool) -> State:
    """Return the sums over clients of the statistics for the head's start."""
    sums = total.summed_statistics(_summed_shapes(setup, secure, asks))
    if not secure.noisy:
        return sums
    variance = secure.variance(masked.told.clients, 0) * total.clients / masked.told.clients
    return sums | {VARIANCE: torch.tensor([variance], dtype=torch.float64)}


def _first_clip(setup: Setup, secure: SecureSum, total: Total | None) -> float:
    """Return C of round 1.

    Without the sum before it, every client counts with one batch; C then grows from round to round.
    """
    if secure.noisy:
        return 1.0
    if total is None:
        rows = setup.config.batch_size
        weight = float(rows) if setup.by_rows else 1.0
    else:
        rows, weight = round(total.rows / total.clients), total.weight / total.clients
    return secure.headroom * (secure.norm or _bound_update_norm(setup, rows)) * weight


def _bound_update_norm(setup: Setup, rows: int) -> float:
    """Return the norm of a first update whose steps move every entry by its learning rate, as in Adam."""
    rate, steps = setup.schedule.get_rate(1), setup.training.steps_for(rows)
    names = setup.strategy.list_trained(setup.layout, 1) - setup.strategy.list_private(setup.layout)
    sizes = {name: count_entries(setup.layout.shapes[name]) for name in names}
    rates = {name: setup.training.optimizer.rate(name, rate) for name in names}
    return float(steps * math.sqrt(sum(sizes[name] * rates[name] ** 2 for name in names)))

"""Reports of clients whose updates the server sees one at a time: noised if privacy asks for it, and encoded."""

from __future__ import annotations

import time
from collections.abc import Callable

from fedpeft.clients.evaluating import evaluate_client
from fedpeft.clients.releasing import Encoding, LocalUpdate, release
from fedpeft.clients.stages import ClientRound, Reports, TrainedRound, is_summand, refuse_form
from fedpeft.clients.store import add_label, select_section
from fedpeft.clients.workbench import Workbench

from fedpeft.aggregation.head_start import HeadStart, WeighsErrors
from fedpeft.aggregation.strategy import Strategy, count_round_types
from fedpeft.communication.codec import Codec
from fedpeft.communication.messages import Instruction, Report
from fedpeft.communication.uplink import Uplink
from fedpeft.errors import PayloadError
from fedpeft.machine import seeds
from fedpeft.peft.adapter import State
from fedpeft.privacy.guard import Guard

LABEL = "feedback"
"""Section of the client's state that holds its memory of compression errors."""


class EncodedReports(Reports):
    """Reports as one payload each, with the memory of what its codec drops.

    Args:
        bench: the worker's workbench.
        uplink: encodes updates.
        statistics: encodes statistics before round 1.
        head: weights these statistics by importance.
        strategy: counts the kinds of rounds that take turns.
        guard: the privacy mechanism; None: there is none.
    """

    def __init__(
        self,
        bench: Workbench,
        uplink: Uplink,
        statistics: Codec,
        head: HeadStart,
        strategy: Strategy,
        guard: Guard | None,
    ) -> None:
        """Hold the parts that protect and encode reports."""
        self.bench, self.uplink, self.statistics = bench, uplink, statistics
        self.head, self.strategy, self.guard = head, strategy, guard

    def keeps(self, instruction: Instruction) -> bool:
        """Return whether the uplink has a memory."""
        return self.uplink.has_memory

    def check(self, instruction: Instruction) -> None:
        """Refuse steps of secure sums.

        Raises:
            PrivacyError: the instruction is such a step.
        """
        if instruction.kind == "sum" or (is_summand(instruction) and instruction.step):
            refuse_form(instruction, "for a secure sum")

    def report_statistics(self, instruction: Instruction, rows: int, measure: Callable[[], State]) -> Report:
        """Return the statistics for the start, protected and encoded."""
        started, client = time.perf_counter(), instruction.client
        statistics = measure()
        if self.guard is not None:
            statistics = self.guard.protect_statistics(statistics, (instruction.attempt, client))
            rows = 1 if self.guard.mechanism.silent else rows
        seed = seeds.derive_seed(self.bench.plan.seed, "statistics", client)
        weights = self.head.importance(statistics) if isinstance(self.head, WeighsErrors) else {}
        payload = self.statistics.encode(statistics, seed=seed, weights=weights)
        return Report(client, 0, payload, rows=rows, seconds=time.perf_counter() - started)

    def report_evaluation(self, client_round: ClientRound) -> Report:
        """Return loss and accuracy on held-out examples, or the answer to a question about them."""
        return evaluate_client(self.bench, client_round)

    def report_update(self, client_round: TrainedRound, seconds: float, keep: Callable[[State], None]) -> Report:
        """Return the update, protected and encoded; an update that is not finite stays here."""
        job, asked, result = client_round.job, client_round.instruction, client_round.result
        own = LocalUpdate(
            client_round.update,
            client_round.select_exchanged(job.received),
            client_round.select_exchanged(result.state),
            client_round.layout,
        )
        encoding = Encoding(
            memory=select_section(client_round.state, LABEL),
            bits=asked.bits,
            seed=seeds.derive_seed(job.seed, "codec", job.round, job.client),
            turn=job.round // count_round_types(self.strategy, self.bench.plan.layout) + job.client,
        )
        ids = job.round, asked.attempt, job.client
        try:
            payload, memory = release(own, self.uplink, self.guard, ids, encoding, client_round.hand_in)
        except PayloadError as error:
            return Report(job.client, job.round, b"", result.rows, result.steps, seconds=seconds, error=str(error))
        keep(client_round.state | add_label(LABEL, memory))
        told = result.rows, result.steps, result.loss, seconds
        correction, used = client_round.correction, client_round.used
        return Report(job.client, job.round, payload, *told, correction=correction, used=used)

"""Questions to clients about their own held-out examples. The answers are sums, so nobody else sees an example.

An answer that no examples can have is left out. A client with more examples than the cap counts as if it had that many,
as before round 1. Under masks (`fedpeft.rounds.masked_sum`) the server sees only the sum of the answers, and only that
can be checked.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from rich.markup import escape

from fedpeft.aggregation.server_optimizer import AVERAGE
from fedpeft.aggregation.update import Fold
from fedpeft.communication.base_residual import Residual, ResidualFiles
from fedpeft.communication.decoding import decode
from fedpeft.communication.downlink import Versions
from fedpeft.communication.messages import NOT_JOINED, Instruction, Report
from fedpeft.errors import PayloadError, RunError
from fedpeft.peft.adapter import State
from fedpeft.privacy.secure_sum.contribution import BESIDE, count_tensor_entries
from fedpeft.privacy.secure_sum.sum import SecureSum
from fedpeft.rounds.acceptance import ClientAnswers, check_report, describe_rejection
from fedpeft.rounds.dispatch import Broadcast
from fedpeft.rounds.exchange import Transport
from fedpeft.rounds.masked_sum import MaskedSum
from fedpeft.rounds.progress import ServerState
from fedpeft.rounds.sampling import select_measured_clients
from fedpeft.trust.question import ROWS, Question
from fedpeft.wiring.setup import Setup


@dataclass(frozen=True)
class SummedAnswers:
    """Sums over all clients' examples, the number of clients, and what asking and answering cost in bytes."""

    total: State
    clients: int
    downlink_bytes: int = 0
    uplink_bytes: int = 0

    @property
    def rows(self) -> float:
        """Number of examples in the sums."""
        return float(self.total[ROWS])


@dataclass(frozen=True)
class Questions:
    """Asks clients about the model of the server state `progress`.

    Attributes:
        setup: the parts of the run.
        clients: transport to the clients.
        progress: its state is the one that clients use (`select_kept_state`).
        most_rows: cap on the example count that a client is weighted by.
        say: receives messages about answers that do not count.
    """

    setup: Setup
    clients: Transport
    progress: ServerState
    most_rows: float = math.inf
    say: Callable[[str], None] = lambda _: None

    def ask(self, question: Question, cohort: Sequence[int] = (), round_number: int | None = None) -> SummedAnswers:
        """Return the sum of the answers of all clients, or of some in a very large population.

        The bytes of pure measurements do not count as traffic of the run.

        Args:
            question: the question.
            cohort: the clients to ask; empty: all, or as many as `select_measured_clients` returns.
            round_number: round by which clients choose their task; None: the last one.

        Raises:
            ConfigError: the answers would be too long.
            RunError: no client has answered.
        """
        cohort = cohort or select_measured_clients(self.setup.clients, self.setup.config.seed)
        round_number = self.progress.round if round_number is None else round_number
        if self.setup.secure_sum is not None:
            return self._ask_under_masks(self.setup.secure_sum, question, cohort, round_number)
        total, found = Fold(), ClientAnswers()
        for report, answer in self._ask(question, cohort, round_number, found):
            total.add(answer, min(1.0, self.most_rows / max(1, report.rows)))
        return SummedAnswers(total.sums, found.clients, found.downlink_bytes, found.uplink_bytes)

    def ask_each(self, question: Question, cohort: Sequence[int], round_number: int) -> ClientAnswers:
        """Return the answer of each client of a cohort that has given one, and what the answers cost.

        Raises:
            ConfigError, RunError: see `ask`.
        """
        found = ClientAnswers()
        for report, answer in self._ask(question, cohort, round_number, found):
            found.by_client[report.client] = answer
        return found

    def _ask(
        self, question: Question, cohort: Sequence[int], round_number: int, found: ClientAnswers
    ) -> Iterator[tuple[Report, State]]:
        """Yield the answers that count, and add the bytes of all answers to `found`."""
        shapes = self._get_shapes(question)
        instructions = self._create_instructions(question, cohort, round_number)
        found.downlink_bytes = sum(len(i.payload) + len(i.residual) for i in instructions)
        for report in self.clients.send_in_order(instructions, len(cohort), "evaluate"):
            found.uplink_bytes += len(report.payload)
            if not report.rows and report.error in ("", NOT_JOINED):  # it has no held-out examples, or is not there
                continue
            try:
                answer = _answer(report, question, shapes)
            except PayloadError as error:
                said = describe_rejection(f"{self.clients.called(report.client)}'s answer does not count", str(error))
                self.say(escape(said))
                continue
            found.clients += 1
            yield report, answer
        if not found.clients:
            raise RunError(
                f"FP5204 none of {len(cohort)} clients has examples on which its model could answer {question.text}"
            )

    def _ask_under_masks(
        self, secure: SecureSum, question: Question, cohort: Sequence[int], round_number: int
    ) -> SummedAnswers:
        """Return the sums from one secure sum (`fedpeft.privacy.secure_sum.integers`), each to its unit."""
        shapes = self._get_shapes(question)
        masked = MaskedSum(
            self.clients, secure, self.setup.config.seed, round_number, 0, count_tensor_entries(shapes) + BESIDE, 1.0
        )
        instructions = self._create_instructions(question, cohort, round_number)
        try:
            total = masked.compute_total(instructions, "evaluate")
            sums = total.summed_statistics(shapes)
            question.check(sums, builtins.round(total.rows))
        except PayloadError as error:
            raise RunError(f"FP5205 there is no sum of clients' answers to {question.text}: {error}") from error
        down = sum(masked.sent.values()) + sum(len(i.payload) + len(i.residual) for i in instructions)
        return SummedAnswers(sums, builtins.round(total.weight), down, sum(masked.received.values()))

    def _get_shapes(self, question: Question) -> dict[str, tuple[int, ...]]:
        matrices = {t.name: t.shape for t in self.setup.layout.tensors if t.role in ("lora_A", "lora_B")}
        return question.get_all_shapes(self.setup.facts.classes, matrices)

    def _create_instructions(self, question: Question, cohort: Sequence[int], round_number: int) -> list[Instruction]:
        """Return the instructions, after announcing them if the run keeps transcripts."""
        sent = Broadcast(self.setup, self.progress, self.clients.remote)
        self.clients.publish(lambda: sent.create_digests("evaluate", round_number, question.text))
        return [replace(sent.create_instruction("evaluate", k, round_number), asks=question.text) for k in cohort]


def _answer(report: Report, question: Question, shapes: dict[str, tuple[int, ...]]) -> State:
    """Return the sums in a report.

    Raises:
        PayloadError: no examples can have these sums.
    """
    check_report(report)
    answer = decode(report.payload, shapes, agreed=())
    if answer.keys() != shapes.keys():
        raise PayloadError(f"FP6164 sums called {sorted(answer)} instead of {sorted(shapes)}")
    question.check({name: tensor.double() for name, tensor in answer.items()}, report.rows)
    return {name: tensor.double() for name, tensor in answer.items()}


def select_kept_state(progress: ServerState, bases: ResidualFiles) -> ServerState:
    """Return the run as if the state that it keeps were its last one, and write its base to `bases`.

    The kept base gets the number of the next round, which is free. Rounds that are not kept may have put a residual
    into other modules; clients that hold it then receive zeros. Clients receive the whole state.
    """
    state, kept = progress.result
    if progress.kept_round == progress.round and AVERAGE not in progress.memory:
        return progress
    total = {module: kept.get(module, torch.zeros_like(last)) for module, last in progress.residual.total.items()}
    version = progress.round + 1 if total else 0
    bases.put(version, total)
    return replace(
        progress,
        adapter=state,
        residual=Residual(version, total, since=dict.fromkeys(total, version)),
        memory={label: memory for label, memory in progress.memory.items() if label != AVERAGE},
        versions=Versions(),
        held={},
    )

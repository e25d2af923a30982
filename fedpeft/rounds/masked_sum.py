"""The server's half of a secure sum: it asks the cohort five times, and learns the sum of the answers.

A client that fails in a step has dropped out of the sum. If its masked vector has already arrived, it still counts.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from rich.markup import escape

from fedpeft.aggregation.whitening import WEIGHT, Whitening
from fedpeft.communication.downlink import SentState
from fedpeft.communication.messages import Instruction, Report
from fedpeft.communication.payload import Shape
from fedpeft.errors import PayloadError
from fedpeft.peft.adapter import State
from fedpeft.privacy.abilities import is_whitened
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.cohorts import FEWEST
from fedpeft.privacy.secure_sum.collusion import explain_excess
from fedpeft.privacy.secure_sum.contribution import ANY_LOSS, Losses, Total, Weights
from fedpeft.privacy.secure_sum.coordinator import Coordinator, VoidError
from fedpeft.privacy.secure_sum.member import VECTORS
from fedpeft.privacy.secure_sum.neighbours import graph
from fedpeft.privacy.secure_sum.shared_noise import SharedNoise
from fedpeft.privacy.secure_sum.sum import SecureSum
from fedpeft.rounds.acceptance import ClientResult
from fedpeft.rounds.sum_journal import OpenSum, Step
from fedpeft.rounds.traffic import Traffic

if TYPE_CHECKING:
    from fedpeft.rounds.dispatch import Broadcast
    from fedpeft.rounds.exchange import Transport
    from fedpeft.wiring.setup import Setup

WEIGHTS = "summed weights"
"""Key in the checkpoint of what the sum before round 1 tells: the clients' total weight, and their number."""


class MaskedSum:
    """One secure sum.

    Args:
        clients: transport to the clients.
        secure: the settings.
        seed: the run's seed.
        round_number: number of the round; 0 before round 1.
        size, numbers, clip: see `Announcement`.
        working: entered while the server computes, and left while it waits.
        heard: receives each report, also of failures; None: nothing does.

    Attributes:
        sent, received: bytes of each client, without what step 3 carries beside the sum.
        failed: why a client dropped out before its vector had arrived.
        arrived: the clients whose vectors are in the sum.
        warnings: sentences about clients that have lied, for the user.
    """

    def __init__(  # noqa: PLR0913
        self,
        clients: Transport,
        secure: SecureSum,
        seed: int,
        round_number: int,
        size: int,
        numbers: int,
        clip: float,
        working: AbstractContextManager[object] | None = None,
        heard: Callable[[Report], None] | None = None,
    ) -> None:
        """Hold the settings of the sum; nothing is sent yet."""
        self.clients, self.secure, self.seed, self.round = clients, secure, seed, round_number
        self.size, self.numbers, self.clip = size, numbers, clip
        self.working, self.journal, self.heard = working or nullcontext(), clients.journal, heard
        self.sent: Counter[int] = Counter()
        self.received: Counter[int] = Counter()
        self.failed: dict[int, str] = {}
        self.arrived: list[int] = []
        self.warnings: list[str] = []

    def compute_total(
        self,
        asked: Sequence[Instruction],
        phase: str,
        by_rows: bool | None = None,
        start: Sequence[float] = (),
        losses: Losses = ANY_LOSS,
    ) -> Total:
        """Return the sum of these clients' answers to their instructions.

        Args:
            asked: the instructions, one for each client.
            phase: name of the phase, for `Transport.answered`.
            by_rows: whether clients weigh as much as they have examples, or 1 each; None: neither.
            start: total weight in the sum before round 1, and its number of clients; empty: nothing to compare with.
            losses: the possible mean training losses.

        Raises:
            VoidError: too many clients have dropped out.
        """
        if len(asked) < FEWEST:
            raise VoidError(f"FP6161 {len(asked)} clients are asked; a secure sum takes {FEWEST} or more")
        cohort = [instruction.client for instruction in asked]
        self.told = self._announce(cohort)
        run = self.journal.run + self.clients.recorded if self.journal else ""
        terms = self.told.terms(self.secure, self.seed, self.round, run)
        if excess := explain_excess(terms, len(cohort), self.secure.assumed_colluding):
            raise VoidError(f"FP6193 {excess}; lower collude, or raise threshold or the number of neighbors")
        neighbours = graph(cohort, self.secure.neighbours, self.seed, self.round)
        self.at = at = Coordinator(terms, neighbours, self.clients.members.roster)
        announced = self.told.to_bytes()
        alive = self._step(1, self._create_plain_instructions(cohort), lambda _: announced, at.take_keys, "keys")
        alive = self._step(2, self._create_plain_instructions(alive), at.peers, at.take_sealed, "shares")
        work = [instruction for instruction in asked if instruction.client in set(alive)]
        self.arrived = alive = self._step(3, work, at.sealed_for, at.take_vector, phase)
        if len(alive) < terms.least:
            raise VoidError(
                f"FP6162 {len(alive)} vectors have arrived of {len(cohort)}; with fewer than {terms.least} there would "
                "be too little noise in their sum"
            )
        survivors = at.write_survivors()
        alive = self._step(4, self._create_plain_instructions(alive), lambda _: survivors, at.take_witness, "witnesses")
        self._step(5, self._create_plain_instructions(alive), at.witnesses_for, at.take_shares, "unmasking")
        try:
            with self.working:
                total = Total.of(at.sum(), len(self.arrived), self.told, self.secure, self.seed, self.round)
            return self._check_total(total, by_rows, start, losses)
        except VoidError as error:
            raise VoidError("; ".join([str(error), *at.refusals[:1]])) from None
        except PayloadError as error:
            raise VoidError(f"FP6163 the sum is void: {error}") from error
        finally:
            self.warnings += [self._tell_false(holder, of) for holder, of in sorted(at.false_shares.items())]

    def _check_total(self, total: Total, by_rows: bool | None, start: Sequence[float], losses: Losses) -> Total:
        """Return the total with possible weights and loss; warn of others, and of a sum that moves nothing."""
        if by_rows is None:
            return total.discard_impossible()
        before = (start[0], int(start[1])) if start else None
        checked = total.discard_impossible(
            Weights.of(total.clients, by_rows, self.clients.members.most_rows, before), losses
        )
        if math.isnan(checked.loss):
            self.warnings.append(
                f"clients state a mean training loss of {total.loss:g} on {total.rows:g} examples: a client lies, or "
                "its training has diverged; the loss is not recorded"
            )
        if checked.weight != total.weight:
            self.warnings.append(
                f"clients state weights of {total.weight:g} together, which is impossible: at least one client lies; "
                f"the server takes {checked.weight:g}"
            )
        if self.size and not total.vector.any():
            self.warnings.append("the sum of all updates is zero: it moves nothing")
        return checked

    @property
    def sharing_clients(self) -> list[int]:
        """The clients that have shared their secrets, and were asked for their vectors."""
        return sorted(self.at.sealed) if self.sent else []

    def tell(self, say: Callable[[str], None]) -> None:
        """Tell the user of clients that have lied."""
        for warning in self.warnings:
            say(escape(f"round {self.round}: {warning}" if self.round else f"before round 1: {warning}"))

    def _tell_false(self, holder: int, clients: Iterable[int]) -> str:
        """Return one sentence about a client whose shares of others' secrets were false."""
        of = sorted(clients)
        if len(of) == 1:
            one, other = self.clients.called(of[0]), self.clients.called(holder)
            return f"a share of {one}'s secret at {other} was false, so that one of the two lies; it was left out"
        return f"{self.clients.called(holder)} has given false shares of {len(of)} clients' secrets; they were left out"

    def _create_plain_instructions(self, clients: Iterable[int]) -> list[Instruction]:
        return [Instruction("sum", self.round, client, b"") for client in clients]

    def _announce(self, cohort: list[int]) -> Announcement:
        """Return what the cohort is told alike: what a server announced before its restart, or a new announcement."""
        told = Announcement(os.urandom(16), len(cohort), self.size, self.numbers, self.clip)
        if self.journal is None:
            return told
        before = self.journal.load_opened(self.round)
        if before is not None and (list(before.cohort), replace(before.told, nonce=told.nonce)) == (cohort, told):
            return before.told
        self.journal.begin(OpenSum(self.round, cohort, told))
        return told

    def _step(
        self,
        number: int,
        asked: Sequence[Instruction],
        said: Callable[[int], bytes],
        take: Callable[[int, bytes], None],
        phase: str,
    ) -> list[int]:
        """Ask for a step, unless it was finished before a restart; return the clients with valid answers."""
        step = self.journal.step(number) if self.journal else None
        if step is None:
            step = self._ask(number, asked, said, take, phase)
        else:
            try:
                for client, content in step.answers.items():
                    take(client, content)
            except PayloadError as error:  # such as a certificate that has expired meanwhile
                raise VoidError(f"FP6185 the sum can't be resumed: {error}") from error
            if number == VECTORS:
                self.at.restore(step.taken, step.total)
        self.sent.update(step.sent)
        self.received.update(step.received)
        self.failed.update(step.failed)
        return step.taken

    def _ask(
        self,
        number: int,
        asked: Sequence[Instruction],
        said: Callable[[int], bytes],
        take: Callable[[int, bytes], None],
        phase: str,
    ) -> Step:
        with self.working:
            instructions = [replace(i, step=number, said=said(i.client)) for i in asked]
        step = Step(sent=Counter({i.client: len(i.said) for i in instructions}))
        for report in self.clients.send_in_order(instructions, len(instructions), phase):
            step.received[report.client] += report.bytes
            if self.heard is not None:
                self.heard(report)
            try:
                report.raise_error()
                with self.working:
                    take(report.client, report.payload)
            except PayloadError as error:
                if report.client not in self.arrived:
                    step.failed[report.client] = str(error)
                else:
                    self.at.refusals.append(f"{self.clients.called(report.client)} says: {error}")
                continue
            step.taken.append(report.client)
            if self.journal is not None and number != VECTORS:
                step.answers[report.client] = report.payload
        if self.journal is not None:
            if number == VECTORS:
                step.total = self.at.write_sum()
            self.journal.finish(number, step)
        return step

    def create_results(self, sent: Sequence[SentState], void: str, confidential: bool = False) -> list[ClientResult]:
        """Return the result of each client: bytes, and why it is left out.

        `void` states why there is no sum; empty: there is one.
        """
        return [
            ClientResult(
                round=self.round,
                client=s.instruction.client,
                rank=s.instruction.rank or None,
                rows=None,
                steps=None,
                loss=None,
                seconds=None,
                uplink_bytes=self.received[s.instruction.client],
                downlink_bytes=s.bytes + self.sent[s.instruction.client],
                downlink_from=s.package.base,
                base_precision=s.instruction.base_precision or None,
                confidential=confidential or None,
                rejected=self.failed.get(s.instruction.client) or void or None,
            )
            for s in sent
        ]


def compute_step(
    total: Total, setup: Setup, learning_rate: float, shapes: Mapping[str, Shape], dtype: torch.dtype, told: State
) -> State:
    """Return the mean update of a sum; for a sum of gradients, minus their mean times the learning rate.

    Args:
        total: the sum.
        setup: the parts of the run.
        learning_rate: of the round.
        shapes: of the summed tensors.
        dtype: of the result.
        told: tensors that clients received (`ServerState.told`).
    """
    secure = setup.secure_sum
    if not isinstance(secure, SharedNoise):
        return total.update(shapes, dtype)
    mean = total.update(shapes, dtype, secure.expected)
    if not secure.rows:
        return mean
    if told and is_whitened(setup.mechanism):
        mean |= Whitening.from_state(told, mean[WEIGHT].shape[1]).step(mean)
    rate = setup.training.optimizer.rate
    return {name: -rate(name, learning_rate) * gradient for name, gradient in mean.items()}


def compute_masked_traffic(expected: Traffic, setup: Setup, dispatch: Broadcast) -> Traffic:
    """Return the expected traffic of a secret cohort with updates as masked integers, without keys and shares."""
    assert setup.secure_sum is not None
    clients, size = expected.uplink_parameters / setup.layout.numel, setup.layout.select(dispatch.downlink.shared).numel
    return replace(expected, uplink_bytes=round(clients * size * setup.secure_sum.bits / 8))

"""The server's half of a secure sum: it asks the cohort five times, and learns what all of its answers come to.

Whoever fails in a step has dropped out of the sum. One whose masked vector has arrived is in it all the same.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch

from fedpeft.aggregation.whitening import WEIGHT, Whitening
from fedpeft.communication.downlink import Sent
from fedpeft.communication.messages import Instruction, Report
from fedpeft.communication.payload import Shape
from fedpeft.errors import PayloadError
from fedpeft.peft.adapter import State
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.contribution import Total
from fedpeft.privacy.secure_sum.coordinator import Coordinator, VoidError
from fedpeft.privacy.secure_sum.neighbours import graph
from fedpeft.privacy.secure_sum.shared_noise import SharedNoise
from fedpeft.privacy.secure_sum.sum import FEWEST, SecureSum
from fedpeft.run.setup import Setup
from fedpeft.server.acceptance import ClientResult
from fedpeft.server.dispatch import Dispatch
from fedpeft.server.exchange import Exchange
from fedpeft.server.sum_journal import Opened, Step
from fedpeft.server.traffic import Traffic

VECTORS = 3
"""The step that brings the vectors."""


class MaskedSum:
    """One sum.

    Args:
        clients: how they are reached.
        secure: the settings.
        seed, round: the run's, and 0 before round 1.
        size, numbers, clip: see `Announcement`.
        working: entered while the server computes, and left while it waits.
        heard: is told each report, also those that say why there is no answer; None: nobody wants to know.

    Attributes:
        sent, received: bytes, by client, without what else step 3 brings.
        failed: why a client dropped out before its vector had arrived.
        arrived: whose vectors are in the sum.
    """

    def __init__(
        self,
        clients: Exchange,
        secure: SecureSum,
        seed: int,
        round: int,
        size: int,
        numbers: int,
        clip: float,
        working: AbstractContextManager[object] | None = None,
        heard: Callable[[Report], None] | None = None,
    ) -> None:
        self.clients, self.secure, self.seed, self.round = clients, secure, seed, round
        self.size, self.numbers, self.clip = size, numbers, clip
        self.working, self.journal, self.heard = working or nullcontext(), clients.journal, heard
        self.sent: Counter[int] = Counter()
        self.received: Counter[int] = Counter()
        self.failed: dict[int, str] = {}
        self.arrived: list[int] = []

    def of(self, asked: Sequence[Instruction], phase: str) -> Total:
        """The sum of what these instructions' clients make of them.

        Raises:
            VoidError: too many have dropped out.
        """
        if len(asked) < FEWEST:
            raise VoidError(f"{len(asked)} clients are asked; a secure sum takes {FEWEST} or more")
        cohort = [instruction.client for instruction in asked]
        self.told = self._announced(cohort)
        terms = self.told.terms(self.secure, self.seed, self.round, self.journal.run if self.journal else "")
        self.at = at = Coordinator(terms, graph(cohort, self.secure.neighbours, self.seed, self.round))
        announced = self.told.to_bytes()
        alive = self._step(1, self._plain(cohort), lambda _: announced, at.take_keys, "keys")
        alive = self._step(2, self._plain(alive), at.peers, at.take_sealed, "shares")
        work = [instruction for instruction in asked if instruction.client in set(alive)]
        self.arrived = alive = self._step(3, work, at.sealed_for, at.take_vector, phase)
        if len(alive) < terms.least:
            raise VoidError(
                f"{len(alive)} vectors have arrived of {len(cohort)}; with fewer than {terms.least} there would be too "
                "little noise in their sum"
            )
        survivors = at.arrived()
        alive = self._step(4, self._plain(alive), lambda _: survivors, at.take_witness, "witnesses")
        self._step(5, self._plain(alive), at.witnesses_for, at.take_shares, "unmasking")
        try:
            with self.working:
                return Total.of(at.sum(), len(self.arrived), self.told, self.secure, self.seed, self.round)
        except VoidError:
            raise
        except PayloadError as error:
            raise VoidError(f"the sum is void: {error}") from error

    def _plain(self, clients: Iterable[int]) -> list[Instruction]:
        return [Instruction("sum", self.round, client, b"") for client in clients]

    def _announced(self, cohort: list[int]) -> Announcement:
        """What the cohort is told alike: before the server was restarted, if it was, or now."""
        told = Announcement(os.urandom(16), len(cohort), self.size, self.numbers, self.clip)
        if self.journal is None:
            return told
        before = self.journal.opened(self.round)
        if before is not None and (list(before.cohort), replace(before.told, nonce=told.nonce)) == (cohort, told):
            return before.told
        self.journal.begin(Opened(self.round, cohort, told))
        return told

    def _step(
        self,
        number: int,
        asked: Sequence[Instruction],
        said: Callable[[int], bytes],
        take: Callable[[int, bytes], None],
        phase: str,
    ) -> list[int]:
        """Ask for a step, unless it was finished before the server was restarted; returns whose answers are taken."""
        step = self.journal.step(number) if self.journal else None
        if step is None:
            step = self._asked(number, asked, said, take, phase)
        else:
            for client, content in step.answers.items():
                take(client, content)
            if number == VECTORS:
                self.at.restore(step.taken, step.total)
        self.sent.update(step.sent)
        self.received.update(step.received)
        self.failed.update(step.failed)
        return step.taken

    def _asked(
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
        for report in self.clients.in_order(instructions, len(instructions), phase):
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
                continue
            step.taken.append(report.client)
            if self.journal is not None and number != VECTORS:
                step.answers[report.client] = report.payload
        if self.journal is not None:
            if number == VECTORS:
                step.total = self.at.summed()
            self.journal.finish(number, step)
        return step

    def results(self, sent: Sequence[Sent], void: str, confidential: bool = False) -> list[ClientResult]:
        """What is told of each client: bytes, and why it is left out; `void`: why there is no sum, or empty."""
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


def step_of(
    total: Total, setup: Setup, learning_rate: float, shapes: Mapping[str, Shape], dtype: torch.dtype, told: State
) -> State:
    """The mean update that a sum tells; where it is one of gradients, minus their mean times the learning rate.

    Args:
        total, setup, learning_rate, shapes, dtype: of the round.
        told: what clients were (`Progress.told`).
    """
    secure = setup.secure_sum
    if not isinstance(secure, SharedNoise):
        return total.update(shapes, dtype)
    mean = total.update(shapes, dtype, secure.expected)
    if not secure.rows:
        return mean
    if told and setup.mechanism is not None and setup.mechanism.whitens:
        mean |= Whitening.of(told, mean[WEIGHT].shape[1]).step(mean)
    rate = setup.training.optimizer.rate
    return {name: -rate(name, learning_rate) * gradient for name, gradient in mean.items()}


def masked_traffic(expected: Traffic, setup: Setup, dispatch: Dispatch) -> Traffic:
    """The traffic that is `expected` of a secret cohort, its updates as masked integers; without keys and shares."""
    assert setup.secure_sum is not None
    clients, size = expected.uplink_parameters / setup.layout.numel, setup.layout.subset(dispatch.downlink.shared).numel
    return replace(expected, uplink_bytes=round(clients * size * setup.secure_sum.bits / 8))

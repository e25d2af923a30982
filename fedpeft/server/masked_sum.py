"""The server's half of a secure sum: it asks the cohort five times, and learns what all of its answers come to.

Whoever fails in a step has dropped out of the sum. One whose masked vector has arrived is in it all the same.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from fedpeft.communication.downlink import Sent
from fedpeft.communication.messages import Instruction
from fedpeft.errors import PayloadError
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.contribution import Total
from fedpeft.privacy.secure_sum.coordinator import Coordinator, VoidError
from fedpeft.privacy.secure_sum.neighbours import graph
from fedpeft.privacy.secure_sum.sum import FEWEST, SecureSum
from fedpeft.server.acceptance import ClientResult
from fedpeft.server.exchange import Exchange


class MaskedSum:
    """One sum.

    Args:
        clients: how they are reached.
        secure: the settings.
        seed, round: the run's, and 0 before round 1.
        size, numbers, clip: see `Announcement`.
        working: entered while the server computes, and left while it waits.

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
    ) -> None:
        self.clients, self.secure, self.seed, self.round = clients, secure, seed, round
        self.size, self.numbers, self.clip = size, numbers, clip
        self.working = working or nullcontext()
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
        self.told = Announcement(os.urandom(16), len(cohort), self.size, self.numbers, self.clip)
        terms = self.told.terms(self.secure, self.seed, self.round)
        at = Coordinator(terms, graph(cohort, self.secure.neighbours, self.seed, self.round))
        announced = self.told.to_bytes()
        alive = self._step(1, self._plain(cohort), lambda _: announced, at.take_keys, "keys")
        alive = self._step(2, self._plain(alive), at.peers, at.take_sealed, "shares")
        work = [instruction for instruction in asked if instruction.client in set(alive)]
        self.arrived = alive = self._step(3, work, at.sealed_for, at.take_vector, phase)
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

    def _step(
        self,
        step: int,
        asked: Sequence[Instruction],
        said: Callable[[int], bytes],
        take: Callable[[int, bytes], None],
        phase: str,
    ) -> list[int]:
        """Ask for a step; returns whose answers are taken."""
        with self.working:
            instructions = [replace(i, step=step, said=said(i.client)) for i in asked]
        self.sent.update({i.client: len(i.said) for i in instructions})
        taken = []
        for report in self.clients.in_order(instructions, len(instructions), phase):
            self.received[report.client] += report.bytes
            try:
                report.raise_error()
                with self.working:
                    take(report.client, report.payload)
            except PayloadError as error:
                if report.client not in self.arrived:
                    self.failed[report.client] = str(error)
                continue
            taken.append(report.client)
        return taken

    def results(self, sent: Sequence[Sent], void: str) -> list[ClientResult]:
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
                rejected=self.failed.get(s.instruction.client) or void or None,
            )
            for s in sent
        ]

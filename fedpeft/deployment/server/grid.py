"""The grid of real clients: other processes, on other machines, behind gRPC with mutual TLS.

A round does not wait forever. When its deadline is over and a quorum has answered, the other clients are left out, with
a report that gives this reason. Without a quorum it waits on, since clients come back, unless so many have failed that
none is left. Evaluations wait for no client that is away.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Message

from fedpeft.communication.flower_grid import FIRST_CLIENT, MESSAGE_TYPES, OwnGrid, get_node_id
from fedpeft.communication.flower_messages import read_instruction, write_record
from fedpeft.communication.messages import NOT_JOINED, Report
from fedpeft.deployment.wire.gateway import Gateway

WAKE_SECONDS = 0.5
"""Seconds between two checks of the deadlines."""

STOP_SECONDS = 30.0
"""Seconds for which a server that is asked to stop waits for the round's quorum."""


class StoppedError(Exception):
    """The server was asked to stop; a resumed run repeats the round that was running."""


@dataclass
class _Wave:
    """Instructions that were sent together.

    Attributes:
        needed: valid answers that the deadline waits for.
        due: time of the deadline, by the monotonic clock.
        outstanding: number of instructions without an answer.
    """

    needed: int
    due: float
    outstanding: int = 0

    def is_over(self, now: float, stopping: bool) -> bool:
        """Return whether the wave waits for no client any longer."""
        if self.needed <= 0:
            return stopping or now >= self.due
        return self.needed > self.outstanding and now >= self.due


@dataclass(frozen=True)
class _OpenTask:
    message: Message
    name: str
    task: str
    wave: _Wave


class GrpcGrid(OwnGrid):
    """The members of a gateway's roster, by their client ids.

    Args:
        gateway: their connections.
        quorum: share of the clients asked that must answer before the deadline counts, 0 to 1.
        deadline: seconds; 0: none.
        stopping: set when the server was asked to stop: the round ends as soon as a quorum has answered.
        goes_on: whether a restarted server still waits for the clients that have an instruction; a server that is asked
            to stop then ends at once.
        patience: seconds after which a disconnected client is away.
    """

    def __init__(
        self,
        gateway: Gateway,
        quorum: float,
        deadline: float,
        stopping: threading.Event,
        goes_on: bool = False,
        patience: float = 0.0,
    ) -> None:
        """Hold the gateway and the rules for ending a round."""
        super().__init__()
        self.gateway = gateway
        self.quorum = quorum
        self.deadline = deadline or math.inf
        self.stopping = stopping
        self.goes_on = goes_on
        self.patience = patience
        self._stop_at = math.inf
        self._open: dict[str, _OpenTask] = {}
        self._ready: list[Message] = []

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of all members that have client ids."""
        return (get_node_id(member.id) for member in self.gateway.roster.members if member.id >= 0)

    @property
    def awaited_names(self) -> set[str]:
        """Names of the clients that have a task without an answer."""
        return {entry.name for entry in self._open.values()}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand a task to each client, which receives it when it is connected; return the messages' ids."""
        batch = list(messages)
        names = {member.id: member.name for member in self.gateway.roster.members}
        here = self._find_connected()
        wave = _Wave(math.ceil(self.quorum * len(batch)), time.monotonic() + self.deadline)
        identifiers = []
        for message in batch:
            identifier = self._stamp(message)
            client = message.metadata.dst_node_id - FIRST_CLIENT
            identifiers.append(identifier)
            if client not in names:
                self._answer(message, NOT_JOINED)
                continue
            if message.metadata.message_type == MESSAGE_TYPES["evaluate"] and names[client] not in here:
                self._answer(message, "it is away")
                continue
            task = self.gateway.submit(names[client], read_instruction(message))
            self._open[task] = _OpenTask(message, names[client], task, wave)
            wave.outstanding += 1
        return identifiers

    def _find_connected(self) -> set[str]:
        """Return the names of the clients that are connected, or were a moment ago."""
        latest = time.monotonic() - self.patience
        return {s.member.name for s in self.gateway.list_sessions() if s.connected or s.seen > latest}

    def _answer(self, message: Message, reason: str) -> None:
        asked = read_instruction(message)
        report = Report(asked.client, asked.round, b"", error=reason)
        self._ready.append(Message(write_record(report), reply_to=message))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return reports that have arrived, or failed ones for those that will not; wait a moment for the next one."""
        if not self._ready:
            self._wait()
        ready, self._ready = self._ready, []
        return ready

    def _wait(self) -> None:
        try:
            answer = self.gateway.answers.get(timeout=WAKE_SECONDS)
            while True:
                entry = self._open.pop(answer.task, None)
                if entry is not None:
                    entry.wave.outstanding -= 1
                    entry.wave.needed -= not answer.report.error
                    self._ready.append(Message(write_record(answer.report), reply_to=entry.message))
                answer = self.gateway.answers.get_nowait()
        except queue.Empty:
            pass
        now = time.monotonic()
        stopping = self.stopping.is_set()
        if stopping and self.goes_on:
            raise StoppedError
        if stopping:
            self._stop_at = min(self._stop_at, now + STOP_SECONDS)
        for entry in [e for e in self._open.values() if e.wave.is_over(now, stopping)]:
            self._open.pop(entry.task)
            self.gateway.withdraw(entry.name, entry.task)
            reason = "the server was asked to stop" if stopping else f"no answer within {self.deadline:g} s"
            self._answer(entry.message, reason)
        if now >= self._stop_at and not self._ready:
            raise StoppedError

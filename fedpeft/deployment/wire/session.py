"""A client as the server sees it: its calls, its connection, and the tasks that it has not answered."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpc.aio import ServicerContext

from fedpeft.communication.messages import Instruction, Report
from fedpeft.deployment.identity.members import Member
from fedpeft.deployment.identity.signing import SignedStatement
from fedpeft.deployment.wire import v2_pb2 as v2

KNOWN_TASKS = 16
"""Finished tasks of a client that are remembered, so that a repeated or late report is told from an invented one."""


class TaskNames:
    """Names of the tasks that a server gives out from its start to its end; no two servers' are alike."""

    def __init__(self) -> None:
        self._server = secrets.token_hex(4)
        self._count = 0

    def create_name(self) -> str:
        """A name that was never given."""
        self._count += 1
        return f"{self._server}.{self._count}"

    def __contains__(self, task: str) -> bool:
        """Whether the name looks like this server's: others are of the server before it was restarted."""
        return task.startswith(f"{self._server}.")


@dataclass(frozen=True)
class Caller:
    """What a call shows of who it comes from."""

    identity: Mapping[str, Sequence[bytes]]
    metadata: Mapping[str, object]

    @classmethod
    def from_context(cls, context: ServicerContext) -> Caller:
        """The caller of a call."""
        return cls(context.auth_context(), dict(context.invocation_metadata() or ()))


@dataclass
class Session:
    """A client, whether connected or not.

    Attributes:
        caller: as it registered the last time; None: not since the server's start.
        task, instruction: what it is asked; empty and None: nothing.
        statement: the server's about the task.
        stream: number of its newest task stream; older ones end.
        connected: streams that are open.
        seen: when it was last connected.
        upload: the newest report that is on its way; older ones end.
        repeats: reports that nobody waited for, since its newest task.
        finished: its earlier tasks, and whether their reports were taken.
        received_bytes, sent_bytes: on the wire, with gRPC's message frames.
    """

    member: Member
    registration: v2.Registration = field(default_factory=v2.Registration)
    caller: Caller | None = None
    task: str = ""
    instruction: Instruction | None = None
    statement: SignedStatement | None = None
    stream: int = 0
    connected: int = 0
    seen: float = field(default_factory=time.monotonic)
    upload: asyncio.Task[Any] | None = None
    repeats: int = 0
    finished: OrderedDict[str, bool] = field(default_factory=OrderedDict)
    received_bytes: int = 0
    sent_bytes: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def close_task(self, taken: bool) -> None:
        """The task is over."""
        self.finished[self.task] = taken
        while len(self.finished) > KNOWN_TASKS:
            self.finished.popitem(last=False)
        self.task, self.instruction, self.statement = "", None, None


@dataclass(frozen=True)
class Answer:
    """A task that is over: the report, or why there is none."""

    task: str
    report: Report

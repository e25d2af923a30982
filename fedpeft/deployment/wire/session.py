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
"""Finished tasks of a client that are remembered, to tell a repeated or late report from an invented one."""


class TaskNames:
    """Names of the tasks that a server gives out from its start to its end; names of two servers never collide."""

    def __init__(self) -> None:
        """Choose a random prefix for this server."""
        self._server = secrets.token_hex(4)
        self._count = 0

    def create_name(self) -> str:
        """Return a name that was never given."""
        self._count += 1
        return f"{self._server}.{self._count}"

    def __contains__(self, task: str) -> bool:
        """Return whether the name is this server's; other names are from before its restart."""
        return task.startswith(f"{self._server}.")


@dataclass(frozen=True)
class Caller:
    """The caller of a call, as gRPC presents it."""

    identity: Mapping[str, Sequence[bytes]]
    metadata: Mapping[str, object]

    @classmethod
    def from_context(cls, context: ServicerContext) -> Caller:
        """Return the caller of a call."""
        return cls(context.auth_context(), dict(context.invocation_metadata() or ()))


@dataclass
class Session:
    """A client, whether connected or not.

    Attributes:
        caller: the caller of its last registration; None: not since the server's start.
        task, instruction: its present task; empty and None: it has none.
        statement: the server's about the task.
        stream: number of its newest task stream; older ones end.
        connected: number of open streams.
        seen: when it was last connected.
        upload: the newest report that is on its way; older ones end.
        repeats: unexpected reports since its newest task.
        finished: its earlier tasks, and whether their reports were accepted.
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
        """End the task, and remember whether its report was accepted."""
        self.finished[self.task] = taken
        while len(self.finished) > KNOWN_TASKS:
            self.finished.popitem(last=False)
        self.task, self.instruction, self.statement = "", None, None


@dataclass(frozen=True)
class Answer:
    """A finished task: the report, or why there is none."""

    task: str
    report: Report

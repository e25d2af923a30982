"""Admission of calls: a client is served by name, not too often, and must send its message soon.

A call is accepted before its message has arrived. Anyone who holds a certificate (without TLS, anyone at all) could
open calls, send nothing and never register. So few such calls may wait, for a short time, and their messages must be
short.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import ServicerContext

from fedpeft.deployment.identity.authentication import Doorkeeper, RefusedError, TokenBucket, create_dropped_error
from fedpeft.deployment.identity.members import Roster
from fedpeft.deployment.server.event_log import Events
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.deployment.wire.session import Caller

CALLS_PER_SECOND, CALLS_AT_ONCE = 5.0, 40.0
"""Rate limit of a client. It needs a task stream and a report for each task; more is a flood."""

LINES_PER_SECOND, LINES_AT_ONCE = 1.0, 100.0
"""Rate limit of logged refusals; all are counted. Some refusals are normal, and a flood must not fill the disk."""

MESSAGE_SECONDS = 10.0
"""Seconds within which a call must send its message."""

MESSAGE_LIMIT: Final = 1 << 16
"""Most bytes of an introduction or a registration; a client's has a few hundred."""

WAITING, WAITING_OF_ONE = 256, 4
"""Most calls that have not sent their message: of all callers, and of one. Others retry a moment later."""

M = TypeVar("M", v2.Introduction, v2.Registration)


class Admission:
    """The door of a server.

    Args:
        doorkeeper: reads names.
        roster: the members.
        events: the log.
        flooded: receives the name of a caller that calls too often, and returns its refusal.

    Attributes:
        refused: number of refused calls and connections.
    """

    def __init__(
        self, doorkeeper: Doorkeeper, roster: Roster, events: Events, flooded: Callable[[str], RefusedError]
    ) -> None:
        """Hold the parts, and begin to count."""
        self._doorkeeper, self._roster, self._events, self._flooded = doorkeeper, roster, events, flooded
        self.refused = 0
        self._lines = TokenBucket(LINES_PER_SECOND, LINES_AT_ONCE)
        self._buckets: dict[str, TokenBucket] = {}
        self._waiting: Counter[str] = Counter()

    def name(self, caller: Caller) -> str:
        """Return a caller's name.

        Raises:
            RefusedError: the caller has no valid name.
        """
        return self._doorkeeper.name(caller.identity, caller.metadata)

    def note_refusal(self, **fields: str) -> None:
        """Count a refusal, and log it unless there are too many."""
        self.refused += 1
        if self._lines.take():
            self._events.emit("refused", **fields)

    def note_answer(self, name: str) -> None:
        """Note that a call has answered a task: its rate is then the server's own, and not a flood."""
        self._buckets[self._get_counting_name(name)].give_back()

    def _get_counting_name(self, name: str) -> str:
        """Return the name that calls count under; strangers without TLS, whose names are free, share the empty one."""
        return "" if self._doorkeeper.revoked is None and self._roster.find(name) is None else name

    @asynccontextmanager
    async def serve_call(self, context: ServicerContext) -> AsyncIterator[str]:
        """Serve a call, and yield the caller's name; a RefusedError inside is logged and sent to the caller."""
        name = ""
        try:
            name = self.name(Caller.from_context(context))
            member = self._roster.find(name)
            if member is not None and member.dropped:
                raise create_dropped_error(member.dropped)
            bucket = self._buckets.setdefault(
                self._get_counting_name(name), TokenBucket(CALLS_PER_SECOND, CALLS_AT_ONCE)
            )
            if not bucket.take():
                raise self._flooded(name)
            yield name
        except RefusedError as refusal:
            self.note_refusal(client=name, peer=context.peer(), reason=str(refusal))
            await context.abort(refusal.code, str(refusal))

    async def read_message(self, name: str, messages: AsyncIterator[bytes], cls: type[M]) -> M:
        """Return the one message of a call.

        Raises:
            RefusedError: it does not arrive, is too long, or can't be read.
        """
        counted = self._get_counting_name(name)
        if self._waiting.total() >= WAITING or (counted and self._waiting[counted] >= WAITING_OF_ONE):
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, "too many calls are waiting to send a message; retry later")
        self._waiting[counted] += 1
        try:
            content = await asyncio.wait_for(anext(aiter(messages), None), MESSAGE_SECONDS)
        except TimeoutError:
            raise RefusedError(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"the call was silent for {MESSAGE_SECONDS:g} s"
            ) from None
        finally:
            self._waiting[counted] -= 1
            if not self._waiting[counted]:
                del self._waiting[counted]
        if content is None:
            raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "the call has ended without a message")
        if len(content) > MESSAGE_LIMIT:
            raise RefusedError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"the call's message has {len(content)} bytes; legal are {MESSAGE_LIMIT} before a client has joined",
            )
        try:
            made: M = cls.FromString(content)
        except DecodeError:
            raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "the call's message can't be read") from None
        return made

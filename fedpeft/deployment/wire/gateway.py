"""The server's side of the wire: connections of real clients, their tasks and reports.

It runs in a thread with its own event loop; the round loop hands tasks in and takes answers out. A client has at most
one task at a time, receives it again when it reconnects, and can answer nothing else. A client is dropped if it sends
garbage, speaks for another client, answers what it was not asked, or floods. The round goes on without it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import grpc
from grpc.aio import ServicerContext

from fedpeft.communication.messages import NOT_JOINED, Instruction, Report
from fedpeft.deployment.addresses import explain_bind
from fedpeft.deployment.identity.authentication import Doorkeeper, RefusedError, create_dropped_error
from fedpeft.deployment.identity.members import Roster
from fedpeft.deployment.identity.signing import SignedStatement
from fedpeft.deployment.server.event_log import Events
from fedpeft.deployment.transcript.announcements import Announcements
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.deployment.wire.admission import Admission
from fedpeft.deployment.wire.channel import NAME_KEY, SERVER_OPTIONS, SERVICE, WIRE
from fedpeft.deployment.wire.descriptors import reserve_connections
from fedpeft.deployment.wire.event_loop import EventLoop
from fedpeft.deployment.wire.parcel import IncomingParcel, compute_wire_size, encode_statement, split_into_parts
from fedpeft.deployment.wire.session import Answer, Caller, Session, TaskNames
from fedpeft.errors import PayloadError, RunError
from fedpeft.privacy.declared_terms import DeclaredTerms

TEXT_LOGGED = 200
"""Most characters that are logged of a client's description of itself."""

CHECK_SECONDS = 5.0
"""Seconds between two checks of an open stream against the list of revoked certificates."""

REPEATS = 8
"""Most unexpected reports of a client between two tasks, after a lost receipt or because it is late."""


class Gateway:
    """The clients by name.

    Args:
        description: the federation's description for clients; set by the owner before `start`.
        roster: the members.
        doorkeeper: reads names.
        limit: returns the most bytes of a report's payloads, given its round and the client's number of examples.
        accept: refuses a registration that the federation can't use, with a RunError; returns its privacy terms.
        events: the log.
        announcements: records of the rounds for all clients; None: there is no chain of rounds (tests of the wire).
    """

    def __init__(
        self,
        description: v2.Description,
        roster: Roster,
        doorkeeper: Doorkeeper,
        limit: Callable[[int, int], int],
        accept: Callable[[v2.Registration], DeclaredTerms | None],
        events: Events,
        announcements: Announcements | None = None,
    ) -> None:
        """Hold the parts; nothing listens yet."""
        self.description = description
        self.roster = roster
        self.admission = Admission(doorkeeper, roster, events, self._create_flood_error)
        self.announcements = announcements
        self.limit = limit
        self.accept = accept
        self.events = events
        self.answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self.arrivals = threading.Condition()
        self.port = 0
        self._earlier_bytes = (roster.received_bytes, roster.sent_bytes)
        self._tasks = TaskNames()
        self._farewell: str | None = None
        self._sessions: dict[str, Session] = {}
        self._loop = EventLoop("gateway")
        self._server: grpc.aio.Server | None = None
        self._watching: asyncio.Task[None] | None = None

    # --------------------------------------------------------------------------------- for the round loop, any thread

    def start(self, address: str, credentials: grpc.ServerCredentials | None) -> None:
        """Listen at `address` (HOST:PORT; port 0: any free one).

        Raises:
            RunError: the address can't be used, or the process may open too few files.
        """
        self._loop.start()
        self._loop.run(self._start(address, credentials))

    def close(self, farewell: str | None) -> None:
        """End all connections; a `farewell` tells clients that they are needed no more."""
        if self._loop.is_running:
            self._loop.run(self._close(farewell))
            self._loop.stop()

    def submit(self, name: str, instruction: Instruction) -> str:
        """Give a client a task, now or when it connects; returns the task's name."""
        task = self._tasks.create_name()
        statement = self.announcements.create_statement(name, instruction) if self.announcements else None
        self._loop.call_soon(self._assign, name, task, instruction, statement)
        return task

    def withdraw(self, name: str, task: str) -> None:
        """Take a task back: the round goes on without the client's report."""
        self._loop.call_soon(self._withdraw, name, task)

    def list_sessions(self) -> list[Session]:
        """Return all clients that have registered since the start; callers must not change them."""
        return list(self._sessions.values())

    def count_wire_bytes(self) -> tuple[int, int]:
        """Return the bytes received and sent since the run began, including those of earlier servers of the run."""
        received, sent = self._earlier_bytes
        sessions = self.list_sessions()
        return received + sum(s.received_bytes for s in sessions), sent + sum(s.sent_bytes for s in sessions)

    # ------------------------------------------------------------------------------------------------- inside the loop

    async def _start(self, address: str, credentials: grpc.ServerCredentials | None) -> None:
        most = ("grpc.max_allowed_incoming_connections", reserve_connections(self.roster.places))
        self._server = grpc.aio.server(options=(*SERVER_OPTIONS, most))
        self._server.add_generic_rpc_handlers((self._create_handlers(),))
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            reason = explain_bind(address) or str(error)
            raise RunError(
                f"FP5074 the server can't listen at {address} ({reason}); choose another port with --listen, or end "
                "the program that listens there"
            ) from None
        await self._server.start()
        self.roster.since = time.monotonic()
        self._watching = asyncio.create_task(self._watch())

    def _create_handlers(self) -> grpc.GenericRpcHandler:
        """Return the service; calls with one message are read by hand, to notice silent callers (`Admission`)."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Describe": grpc.stream_unary_rpc_method_handler(
                    self.describe, response_serializer=v2.Description.SerializeToString
                ),
                "Tasks": grpc.stream_stream_rpc_method_handler(
                    self.stream_tasks, response_serializer=v2.Part.SerializeToString
                ),
                "Submit": grpc.stream_unary_rpc_method_handler(
                    self.take_report, v2.Part.FromString, v2.Receipt.SerializeToString
                ),
            },
        )

    async def _close(self, farewell: str | None) -> None:
        self._farewell = farewell
        if self._watching is not None:
            self._watching.cancel()
        for session in self._sessions.values():
            session.changed.set()
        if self._server is not None:
            await self._server.stop(grace=5.0 if farewell else 0.5)

    def _assign(self, name: str, task: str, instruction: Instruction, statement: SignedStatement | None) -> None:
        member = self.roster.find(name)
        if member is None or member.dropped:
            reason = f"dropped: {member.dropped}" if member else NOT_JOINED
            self.answers.put(Answer(task, Report(instruction.client, instruction.round, b"", error=reason)))
            return
        session = self._sessions.setdefault(name, Session(member))
        session.task, session.instruction, session.statement = task, instruction, statement
        session.repeats = 0
        self._answer_if_unwelcome(session)
        session.changed.set()

    async def _watch(self) -> None:
        """Answer tasks of clients whose certificates have been revoked meanwhile, connected or not."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for session in self._sessions.values():
                self._answer_if_unwelcome(session)

    def _answer_if_unwelcome(self, session: Session) -> None:
        if session.instruction is None or session.caller is None:
            return
        try:
            self.admission.name(session.caller)
        except RefusedError as refusal:
            if refusal.code != grpc.StatusCode.UNAVAILABLE:  # not where the list can't be read for a moment
                self._answer(session, str(refusal))

    def _answer(self, session: Session, reason: str) -> None:
        """End a client's task without a report, for this `reason`."""
        assert session.instruction is not None
        report = Report(session.instruction.client, session.instruction.round, b"", error=reason)
        self.answers.put(Answer(session.task, report))
        session.close_task(taken=False)

    def _withdraw(self, name: str, task: str) -> None:
        session = self._sessions.get(name)
        if session is not None and session.task == task:
            session.close_task(taken=False)

    def _drop(self, session: Session, reason: str) -> RefusedError:
        with suppress(RunError):  # a full disk: it is dropped until this server ends
            self.roster.drop(session.member, reason)
        self.events.emit("dropped", client=session.member.name, reason=reason)
        if session.instruction is not None:
            self._answer(session, f"dropped: {reason}")
        session.changed.set()
        return create_dropped_error(reason)

    def _notify(self) -> None:
        with self.arrivals:
            self.arrivals.notify_all()

    # ------------------------------------------------------------------------------------------------------- the calls

    async def describe(self, messages: AsyncIterator[bytes], context: ServicerContext) -> v2.Description:
        """Return the federation's description to a client."""
        async with self.admission.serve_call(context) as name:
            request = await self.admission.read_message(name, messages, v2.Introduction)
            if request.wire != WIRE:
                raise RefusedError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"the server runs fedpeft {self.description.software} with version {WIRE} of the protocol, the "
                    f"client runs {request.software[:20]} with version {request.wire}; install the server's version",
                )
            self._enter(name)
            return self.description

    async def stream_tasks(self, messages: AsyncIterator[bytes], context: ServicerContext) -> AsyncIterator[v2.Part]:
        """Yield a client's tasks, one after another, until the federation is finished."""
        async with self.admission.serve_call(context) as name:
            request = await self.admission.read_message(name, messages, v2.Registration)
            session = self._register(name, request)
            session.caller = Caller.from_context(context)
            session.stream += 1
            stream = session.stream
            session.connected += 1
            session.changed.set()
            told = {"precision": request.precision[:TEXT_LOGGED], "hardware": request.hardware[:TEXT_LOGGED]}
            self.events.emit(
                "connected", client=name, peer=context.peer(), rows=request.rows, rank=request.rank, **told
            )
            self._notify()
            try:
                await context.send_initial_metadata(((NAME_KEY, name),))  # there may be no task for hours
                async for part in self._stream(session, stream, context):
                    session.sent_bytes += compute_wire_size(part)
                    yield part
            finally:
                session.connected -= 1
                session.seen = time.monotonic()
                self.events.emit("disconnected", client=name)
                self._notify()

    async def _stream(self, session: Session, stream: int, context: ServicerContext) -> AsyncIterator[v2.Part]:
        sent, known = "", session.registration.records
        while True:
            session.changed.clear()
            if session.stream != stream:
                raise RefusedError(grpc.StatusCode.ABORTED, "this client has connected anew; the older connection ends")
            if session.member.dropped:
                raise create_dropped_error(session.member.dropped)
            if self._farewell is not None:
                yield v2.Part(finished=v2.Finished(reason=self._farewell))
                return
            if session.instruction is not None and session.task != sent:
                sent, task, statement = session.task, session.instruction, session.statement
                for record in self.announcements.get_records_since(known) if self.announcements else ():
                    known += 1
                    yield v2.Part(record=encode_statement(record))
                for part in split_into_parts(sent, task, statement):
                    yield part
                continue
            try:
                await asyncio.wait_for(session.changed.wait(), CHECK_SECONDS)
            except TimeoutError:
                self.admission.name(Caller.from_context(context))

    async def take_report(self, messages: AsyncIterator[v2.Part], context: ServicerContext) -> v2.Receipt:
        """Receive a report, and return the verdict on it."""
        async with self.admission.serve_call(context) as name:
            session = self._sessions.get(name)
            if session is None:
                code, why = grpc.StatusCode.FAILED_PRECONDITION, "this client has not asked for tasks yet"
                if self.roster.find(name) is not None:  # it reports to the server before this one, and comes again
                    await context.abort(code, why)
                raise RefusedError(code, why)
            if session.upload is not None:  # it was cut off, and the server has not noticed yet
                session.upload.cancel()
            own = session.upload = asyncio.current_task()
            try:
                return v2.Receipt(verdict=await self._take(session, messages))
            except PayloadError as error:
                raise self._drop(session, str(error)) from None
            except asyncio.CancelledError:
                if session.upload is own:
                    raise
                raise RefusedError(
                    grpc.StatusCode.ABORTED, "this client has begun a newer report; the older one ends"
                ) from None
            finally:
                if session.upload is own:
                    session.upload = None

    async def _take(self, session: Session, messages: AsyncIterator[v2.Part]) -> v2.Receipt.Verdict:
        first = await anext(aiter(messages), None)
        if first is None or not first.HasField("header"):
            raise PayloadError("FP6086 a report begins with its header")
        session.received_bytes += compute_wire_size(first)
        task = first.header.task
        if (verdict := self._judge_report(session, task)) is not None:
            return verdict
        asked = session.instruction
        assert asked is not None
        incoming = IncomingParcel(Report, self.limit(asked.round, session.registration.rows), first.header)
        if incoming.fields["client"] != asked.client:
            raise PayloadError("FP6087 it answered for another client")
        if incoming.fields["round"] != asked.round:
            raise PayloadError(f"FP6088 it answered a task of round {asked.round} for round {incoming.fields['round']}")
        if (rows := incoming.fields.get("rows", 0)) > session.registration.rows:
            raise PayloadError(f"FP6089 it reports {rows} examples, but joined with {session.registration.rows}")
        async for part in messages:
            session.received_bytes += compute_wire_size(part)
            incoming.add(part.chunk)
        report = incoming.get_content()
        if session.member.dropped:
            raise create_dropped_error(session.member.dropped)
        if (verdict := self._judge_report(session, task)) is not None:  # the round may have gone on meanwhile
            return verdict
        session.close_task(taken=True)
        self.admission.note_answer(session.member.name)
        self.answers.put(Answer(task, report))
        return v2.Receipt.TAKEN

    def _judge_report(self, session: Session, task: str) -> v2.Receipt.Verdict | None:
        """Return the verdict on a report for an earlier task; None: the task is the present one.

        Raises:
            PayloadError: the client reports too often, or on an unknown task.
        """
        if task and task == session.task:
            return None
        session.repeats += 1
        if session.repeats > REPEATS:
            raise PayloadError("FP6090 it keeps sending reports that the server did not ask for")
        if task in session.finished:
            return v2.Receipt.KNOWN if session.finished[task] else v2.Receipt.LATE
        if task not in self._tasks:
            return v2.Receipt.LATE  # from before this server's restart
        raise PayloadError("FP6091 it reported on a task that it was never given")

    # ------------------------------------------------------------------------------------------------------- admission

    def _create_flood_error(self, name: str) -> RefusedError:
        session = self._sessions.get(name)
        if session is not None:
            return self._drop(session, "it calls too often")
        return RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "this client calls too often")

    def _create_full_error(self) -> RefusedError:
        places = f"all {self.roster.places} places of the federation are taken"
        return RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, places)

    def _enter(self, name: str) -> None:
        member = self.roster.find(name)
        if member is None and len(self.roster.members) >= self.roster.places:
            raise self._create_full_error()

    def _register(self, name: str, request: v2.Registration) -> Session:
        if request.run != self.description.run:
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, "the client registers for another federation")
        held = len(self.announcements) if self.announcements else 0
        if request.records > held:
            raise RefusedError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the client holds {request.records} records of rounds and the server {held}: it was set back to an "
                "older copy of its folder",
            )
        try:
            terms = self.accept(request)
        except RunError as error:
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from None
        try:
            member = self.roster.enter(name, request.rank, terms, request.rows)
        except RunError:  # a full disk, say: whoever comes back later is taken
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, "the server can't write its list of clients now") from None
        if member is None:
            raise self._create_full_error()
        session = self._sessions.setdefault(name, Session(member))
        session.registration = request
        return session

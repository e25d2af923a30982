"""Messages to clients and their reports over a Flower `Grid`: a cohort in order, or the first to answer."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field

from flwr.serverapp import Grid

from fedpeft.communication.broadcast_digests import BroadcastDigests
from fedpeft.communication.downlink import SentState
from fedpeft.communication.flower_grid import MESSAGE_TYPES, get_node_id
from fedpeft.communication.flower_messages import read_answer, write_record
from fedpeft.communication.messages import Instruction, Report
from fedpeft.machine import seeds
from fedpeft.privacy.secure_sum.roster import Membership
from fedpeft.rounds.in_flight import InFlight
from fedpeft.rounds.report_buffer import ReportBuffer
from fedpeft.rounds.sum_journal import SumJournal

Early = Callable[[Report], None]

WAVE = 128
"""Most clients with an outstanding instruction: it bounds what waits to be folded in client order."""


def format_client(client: int) -> str:
    """Return the display name of a client without its own name."""
    return f"client {client}"


def get_no_limit() -> float:
    """Put no cap on reported example counts."""
    return math.inf


@dataclass(frozen=True)
class JoinedClients:
    """What the server knows of clients that have joined; by default nothing, as in simulations.

    Attributes:
        roster: verifies their keys in secure sums; None: the server cannot check signatures.
        most_rows: examples that a client may have.
        most_weight: how many median clients one client may count as in an evaluation; 0: no limit.
    """

    roster: Membership | None = None
    most_rows: float = math.inf
    most_weight: float = 0.0


NOBODY = JoinedClients()


@dataclass
class Transport:
    """The clients at the other end of a grid.

    Attributes:
        grid: carries the messages.
        answered: is called with (phase, clients that have answered, clients expected), first with 0.
        remote: whether clients are on other machines.
        announce: receives what all clients are told alike, before any client does, and returns its digest; None: the
            run keeps no transcripts.
        journal: of secure sums of real clients; None: a server that is killed asks for another sum.
        called: returns a client's display name, given its id.
        members: what the server knows of clients that have joined.
        most_rows: returns the cap on the example count that a client is weighted by.
        outstanding: for each client whose report has not been returned yet, what it was sent to train on.
        arrived: reports of an asynchronous run that wait for the next step.
        pending: the instructions that have not been answered yet, by message.
        recorded: the digest that `announce` returned last; empty: nothing was announced.
    """

    grid: Grid
    answered: Callable[[str, int, int], None]
    remote: bool = False
    announce: Callable[[BroadcastDigests], str] | None = None
    journal: SumJournal | None = None
    called: Callable[[int], str] = format_client
    members: JoinedClients = NOBODY
    most_rows: Callable[[], float] = get_no_limit
    outstanding: dict[int, SentState] = field(default_factory=dict)
    arrived: deque[Report] = field(default_factory=deque)
    pending: dict[str, Instruction] = field(default_factory=dict)
    recorded: str = ""

    def publish(self, create_digests: Callable[[], BroadcastDigests]) -> None:
        """Announce digests before a client receives a byte of the state, if the run keeps transcripts."""
        if self.announce is not None:
            self.recorded = self.announce(create_digests())

    def receive_answers(
        self, sent: Sequence[SentState], buffer: int, early: Early | None = None
    ) -> Iterator[tuple[Report, SentState]]:
        """Send the instructions of a round of training, and yield each report with what its client was sent.

        Args:
            sent: what each client of the round receives.
            buffer: number of valid reports to wait for, from any client that was asked; 0: all, in order.
            early: receives each report that has come before its turn.
        """
        self.outstanding |= {s.instruction.client: s for s in sent}
        instructions = [s.instruction for s in sent]
        if buffer:
            reports = self._receive_first(instructions, buffer, "train")
        else:
            reports = self.send_in_order(instructions, len(instructions), "train", early)
        for report in reports:
            yield report, self.outstanding.pop(report.client)

    @property
    def in_flight(self) -> InFlight:
        """The clients that train between two steps of an asynchronous run, for its checkpoint."""
        return InFlight(tuple(self.outstanding.values()), tuple(self.arrived))

    def resume(self, in_flight: InFlight) -> int:
        """Restore the clients that were in flight, and send those without an answer their instructions again.

        Returns:
            The bytes that are sent again.
        """
        self.outstanding = {s.instruction.client: s for s in in_flight.sent}
        self.arrived = deque(in_flight.arrived)
        waves = list(in_flight.iterate_waves())
        for wave in waves:
            self._push(wave)
        return sum(self.outstanding[i.client].bytes for wave in waves for i in wave)

    def send_in_order(
        self, instructions: Iterable[Instruction], total: int, phase: str, early: Early | None = None
    ) -> Iterator[Report]:
        """Send the instructions, a wave at a time, and yield the reports in the order of the instructions.

        Answers to earlier instructions of an asynchronous run wait for the next step. A client that still trains is
        asked once it has answered, since it does one thing at a time.
        """
        done = 0
        self.answered(phase, done, total)
        for wave in _split_into_waves(instructions, WAVE):
            self._await_training({i.client for i in wave})
            sent = self._push(wave)
            order = deque(i.client for i in wave)
            parked = ReportBuffer()
            while order:
                for message, report in self._pull():
                    if message not in sent:
                        self.arrived.append(report)
                        continue
                    done += 1
                    self.answered(phase, done, total)
                    if order and report.client == order[0]:
                        order.popleft()
                        yield report
                        continue
                    parked.put(report)
                    if early is not None:
                        early(report)
                while order and (turn := parked.take(order[0])) is not None:
                    order.popleft()
                    yield turn

    def _receive_first(self, instructions: Sequence[Instruction], enough: int, phase: str) -> Iterator[Report]:
        """Send the instructions, and yield reports of any client that was asked, until `enough` of them are valid.

        They are taken in the order of arrival, and yielded in the order of client ids.
        """
        taken, good = list[Report](), 0
        self.answered(phase, good, enough)
        self._push(instructions)
        while good < enough and len(taken) < len(self.outstanding):
            while not self.arrived:
                self.arrived.extend(report for _, report in self._pull())
            report = self.arrived.popleft()
            taken.append(report)
            good += not report.error
            self.answered(phase, good, enough)
        yield from sorted(taken, key=lambda report: report.client)

    def under_way(self, round_number: int) -> list[int]:
        """Return the clients that a restarted server had asked for the secure sum of a round; empty: there is none."""
        return self.journal.load_cohort(round_number) if self.journal is not None else []

    def forget_sum(self) -> None:
        """Forget the secure sum that is under way, so that a restarted server does not resume it."""
        if self.journal is not None:
            self.journal.forget()

    def list_joined(self, clients: int) -> list[int]:
        """Return the ids, out of `clients` clients, of those that have joined by now."""
        nodes = set(self.grid.get_node_ids())
        return [client for client in range(clients) if get_node_id(client) in nodes]

    def select_idle(self, cohort: Sequence[int], seed: int, round_number: int) -> list[int]:
        """Return idle clients of an asynchronous step's cohort, so many that a full cohort is at work."""
        idle = [client for client in cohort if client not in self.outstanding]
        seeds.create_generator(seed, "idle", round_number).shuffle(idle)
        return sorted(idle[: max(0, len(cohort) - len(self.outstanding))])

    def _await_training(self, clients: Set[int]) -> None:
        while any(i.client in clients and i.kind == "train" for i in self.pending.values()):
            self.arrived.extend(report for _, report in self._pull())

    def _push(self, wave: Sequence[Instruction]) -> frozenset[str]:
        """Send a wave of instructions, and return the ids of their messages."""
        messages = [
            self.grid.create_message(write_record(i), MESSAGE_TYPES[i.kind], get_node_id(i.client), str(i.round))
            for i in wave
        ]
        sent = dict(zip(self.grid.push_messages(messages), wave, strict=True))
        self.pending |= sent
        return frozenset(sent)

    def _pull(self) -> Iterator[tuple[str, Report]]:
        """Yield each answer with the id of the message that it answers; an invalid reply becomes a failed report."""
        for message in self.grid.pull_messages(set(self.pending)):
            identifier = message.metadata.reply_to_message_id
            asked = self.pending.pop(identifier, None)
            if asked is not None:
                yield identifier, read_answer(asked, message)


def _split_into_waves(instructions: Iterable[Instruction], size: int) -> Iterator[list[Instruction]]:
    wave: list[Instruction] = []
    for instruction in instructions:
        wave.append(instruction)
        if len(wave) == size:
            yield wave
            wave = []
    if wave:
        yield wave

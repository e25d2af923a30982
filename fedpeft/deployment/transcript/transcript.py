"""A client's transcript: all that the server has told it about the rounds, checked before the client acts on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedpeft.communication.broadcast_digests import (
    UNCOMPARED,
    compute_instruction_digest,
    select_own_fields,
    write_released,
)
from fedpeft.communication.messages import SUM_STEPS, Instruction
from fedpeft.deployment.client.instruction_policy import InstructionPolicy
from fedpeft.deployment.identity.signing import RECORD, TASK, SignedStatement, Verifier
from fedpeft.deployment.transcript.round_record import Chain, RoundRecord, TaskRecord, parse_record
from fedpeft.deployment.transcript.signed_log import Line, SignedLog, encode_line
from fedpeft.errors import RunError

FILE = "transcript.jsonl"
"""Name of the file in a client's folder."""

WRITTEN_TOGETHER = 256
"""Most records that a client who was away holds in memory; all are written before it carries out a task."""


MOST_BYTES = 256 << 20
"""Most bytes of records and statements about tasks on a client's disk; tens of thousands of honest rounds fit."""


def compute_record_limit(rounds: int) -> int:
    """Return the most records of a run: some for each round, and again for each time that it is repeated."""
    return 16 * (rounds + 16)


class Transcript:
    """What a server has told a client, in a file.

    Args:
        file: where it is kept.
        run: name of the federation.
        settings: digest of the description that the client received.
        client: its name.
        verifier: checks signatures; None: there is no TLS, and there are none.
        most: number of records that are accepted; more would fill the disk.
        policy: which records and instructions the client takes.

    Raises:
        RunError: the file can't be read, or contradicts the server's present settings.
    """

    def __init__(
        self,
        file: Path,
        run: str,
        settings: str,
        client: str,
        verifier: Verifier | None,
        most: int,
        policy: InstructionPolicy,
    ) -> None:
        """Read the file, and check its chain."""
        self._log, self._policy = SignedLog(file), policy
        self._client, self._verifier, self._most = client, verifier, most
        self._chain = Chain(run, settings)
        self._tasks: list[TaskRecord] = []  # of the record that was asked about last
        self._trained: TaskRecord | None = None  # the last training
        self._unwritten: list[Line] = []
        self._log.mend()
        self._bytes = self._log.size
        for kind, statement in self._log.read():
            try:
                if kind == RECORD:
                    self._chain.append(statement.content)
                else:
                    self._note(parse_record(TaskRecord, statement.content))
            except RunError as error:
                raise RunError(f"FP5116 the server's earlier records in {file} are not valid: {error}") from None

    def __len__(self) -> int:
        """Return the number of known records."""
        return len(self._chain.records)

    def receive(self, statement: SignedStatement) -> None:
        """Check and keep the next record.

        Raises:
            RunError: it is not signed by the server, or can't follow the previous records.
        """
        record = parse_record(RoundRecord, statement.content)
        self._check_signature(RECORD, statement, record.time)
        if len(self) >= self._most:
            raise RunError(
                f"FP5117 the server sends more records than its rounds can have; at most {self._most} are taken"
            )
        self._policy.check_record(record)
        self._check_room(RECORD, statement)
        self._chain.append(statement.content)
        self._keep(RECORD, statement)
        if len(self._unwritten) >= WRITTEN_TOGETHER:
            self._write()

    def accept(self, instruction: Instruction, statement: SignedStatement) -> Instruction:
        """Check a task against the record for all clients, and return it with the digests of its state and its record.

        Raises:
            RunError: the task does not fit the record.
        """
        if not statement.content:
            raise RunError(
                "FP5118 the server sent a task without a statement about it; ask whoever runs the server to update it"
            )
        told = parse_record(TaskRecord, statement.content)
        self._check_signature(TASK, statement, told.time)
        if (told.run, told.client) != (self._chain.run, self._client):
            raise RunError(
                f"FP5119 the server's statement is about a task of {told.client!r} in {told.run!r}, not of this client"
            )
        if told.digest != compute_instruction_digest(instruction):
            raise RunError("FP5120 the server sent a task that differs from its statement")
        self._check_own(told, instruction)
        repeated = not instruction.step and self._is_last_training(told)
        record = self._record_of(told, SUM_STEPS if instruction.step else 1, repeated)
        record.check_instruction(instruction)
        if not repeated and (told.record, told.digest) not in {(task.record, task.digest) for task in self._tasks}:
            self._check_room(TASK, statement)
            self._keep(TASK, statement)
            self._note(told)
        self._write()
        instruction = replace(instruction, released="", recorded=record.digest)
        if instruction.kind in ("prepare", "sum"):
            return instruction
        name = self._policy.format_state_name(instruction)
        if name not in record.states:
            raise RunError(
                f"FP5123 the server sent a model of {name} in {record.label}, and has recorded none of that "
                "adapter shape"
            )
        digest = record.states[name]
        if digest in UNCOMPARED:
            return instruction
        return replace(instruction, released=write_released(digest, self._policy.smaller_states(instruction, record)))

    def _check_own(self, told: TaskRecord, instruction: Instruction) -> None:
        """Refuse a statement that does not show the client's own fields as they are, or a client's second id."""
        if told.own != select_own_fields(instruction):
            raise RunError(
                "FP5248 the server's statement about a task lacks the adapter shape and the steps that it asks for"
            )
        before = self._tasks[-1].own["client"] if self._tasks and self._tasks[-1].own else instruction.client
        if before != instruction.client:
            raise RunError(f"FP5249 the server names this client {instruction.client}, but named it {before} before")

    def _check_room(self, kind: str, statement: SignedStatement) -> None:
        if self._bytes + len(encode_line(kind, statement)) > MOST_BYTES:
            raise RunError(f"FP5124 the server's records would take more than {MOST_BYTES >> 20} MB; no more are taken")

    def _keep(self, kind: str, statement: SignedStatement) -> None:
        self._bytes += len(encode_line(kind, statement))
        self._unwritten.append((kind, statement))

    def _note(self, told: TaskRecord) -> None:
        self._tasks = [task for task in self._tasks if task.record == told.record] + [told]
        position = self._chain.by_hash.get(told.record)
        if position is not None and self._chain.records[position].kind == "train":
            self._trained = told

    def _write(self) -> None:
        self._log.append(self._unwritten)
        self._unwritten = []

    def _is_last_training(self, told: TaskRecord) -> bool:
        """Return whether a task is the last training once more; a server that was killed may have lost its report."""
        last = self._trained
        return last is not None and (last.record, last.digest) == (told.record, told.digest)

    def _record_of(self, told: TaskRecord, most: int, repeated: bool) -> RoundRecord:
        """Return the record of a task's round.

        A client's tasks never go back, except that the last training may be `repeated` after an evaluation. There is
        one task for each record, or `most` in a secure sum.

        Raises:
            RunError: the record is unknown, the task goes back, or there are too many tasks.
        """
        position = self._chain.by_hash.get(told.record)
        if position is None:
            raise RunError("FP5125 the server sent a task of a round that it has not recorded")
        record = self._chain.records[position]
        if not self._tasks or repeated:
            return record
        before = self._chain.by_hash.get(self._tasks[-1].record, -1)
        if position < before:
            raise RunError(f"FP5126 the server went back to {record.label}, after {self._chain.records[before].label}")
        digests = {told.digest} | {task.digest for task in self._tasks}
        if position == before and len(digests) > most:
            how_many = "two" if most == 1 else f"more than {most}"
            raise RunError(f"FP5127 the server sent {how_many} different tasks in {record.label}")
        return record

    def _check_signature(self, kind: str, statement: SignedStatement, time: int) -> None:
        if self._verifier is not None:
            self._verifier.check(kind, statement, time)

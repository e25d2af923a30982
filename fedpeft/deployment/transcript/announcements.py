"""The server's side of the chain of rounds: its announcements, and the statements that go with tasks."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from fedpeft.communication.broadcast_digests import BroadcastDigests, compute_instruction_digest, select_own_fields
from fedpeft.communication.messages import Instruction
from fedpeft.deployment.identity.signing import RECORD, TASK, SignedStatement, Signer
from fedpeft.deployment.transcript.round_record import Chain, RoundRecord, TaskRecord
from fedpeft.deployment.transcript.signed_log import SignedLog
from fedpeft.errors import RunError

FILE = "rounds.signed.jsonl"
"""Name of the file in the run's folder."""


class Announcements:
    """What the server has told all clients about the rounds, in a file that a resumed server continues.

    Args:
        file: where it is kept.
        run: name of the federation.
        settings: digest of the federation's description.
        cohort: number of clients that a round asks, by the settings.
        signer: signs; None: there is no TLS, and records are only chained.

    Raises:
        RunError: the file can't be read, or belongs to another run or other settings.
    """

    def __init__(self, file: Path, run: str, settings: str, cohort: int, signer: Signer | None) -> None:
        """Read the announcements so far, and check their chain."""
        self._log = SignedLog(file)
        self._cohort, self._signer = cohort, signer
        self._lock = threading.Lock()
        self._chain = Chain(run, settings)
        self._statements: list[SignedStatement] = []
        self._log.mend()
        for kind, statement in self._log.read():
            try:
                if kind != RECORD:
                    raise RunError("FP5016 it holds a statement about a task")
                self._chain.append(statement.content)
            except RunError as error:
                raise RunError(
                    f"FP5017 {file} does not fit this run: {error}; resume with the same options, and with that file "
                    "as the server has left it"
                ) from None
            self._statements.append(statement)

    @property
    def is_signed(self) -> bool:
        """Whether clients can prove what the server has told them."""
        return self._signer is not None

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._statements)

    def get_records_since(self, known: int) -> Sequence[SignedStatement]:
        """Return the records after the first `known`."""
        return self._statements[known:]

    def announce(self, digests: BroadcastDigests) -> str:
        """Record what clients are about to be told. The record is on disk before any client receives it.

        Returns:
            The digest of the record's content (`RoundRecord.digest`).

        Raises:
            RunError: it contradicts earlier records, or can't be written.
        """
        chain = self._chain
        record = RoundRecord(
            run=chain.run,
            sequence=len(chain.records),
            previous=chain.head,
            kind=digests.kind,
            round=digests.round,
            cohort=self._cohort,
            settings=chain.settings,
            states=dict(digests.states),
            common=digests.common,
            base=digests.base,
            time=int(time.time()),
            asks=digests.asks,
        )
        content = record.to_bytes()
        statement = self._sign(RECORD, content)
        with self._lock:
            try:
                chain.append(content)
            except RunError as error:
                raise RunError(
                    f"FP5018 clients have received another history, and would refuse what follows: {error}; continue "
                    "from the newest checkpoint, on the machine that wrote it, or begin a new run"
                ) from None
            self._log.append([(RECORD, statement)])
            self._statements.append(statement)
        return record.digest

    def create_statement(self, client: str, instruction: Instruction) -> SignedStatement:
        """Return the statement that goes with a client's task, about the newest record of its round.

        That is the last record, unless a resumed server sends the instruction of an earlier round again.
        """
        asked = self._chain.get_training_hash(instruction.round) if instruction.kind == "train" else self._chain.head
        digest, own = compute_instruction_digest(instruction), select_own_fields(instruction)
        record = TaskRecord(self._chain.run, client, asked, digest, int(time.time()), own)
        return self._sign(TASK, record.to_bytes())

    def _sign(self, kind: str, content: bytes) -> SignedStatement:
        return self._signer.sign(kind, content) if self._signer else SignedStatement(content)

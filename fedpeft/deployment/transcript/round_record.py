"""Records of rounds: what a server tells all clients alike, each with the hash of the previous one.

    prepare  evaluate*  train 1  evaluate*  train 2  ...

A federation has exactly one chain. A server that repeats a round after a crash records it again, with the same content.
It can't tell one client another history than the others without a fork, which their transcripts show.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from typing import get_type_hints as hints

from fedpeft.communication.broadcast_digests import UNCOMPARED, compute_common_digest
from fedpeft.communication.messages import ADDED, LARGEST, OWN, Instruction, Kind
from fedpeft.errors import RunError
from fedpeft.trust.question import MOST_WORDS

RECORD_LIMIT: Final = 1 << 16
"""Bytes of a record, or of a statement about a task, at most."""

LONGEST_WORD: Final = 63
"""Most characters of a name or word in a statement. People read them, so all must be printable."""

GENESIS: Final = ""
"""Hash that the first record names as its predecessor."""

DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class RoundRecord:
    """What all clients are told alike in one phase of a round.

    Attributes:
        run: name of the federation.
        sequence: number of the record in the run, from 0.
        previous: SHA-256 of the previous record; empty for the first.
        kind, round: as in the instructions.
        cohort: number of clients that a round asks, by the settings; the actual members and their number may be secret.
        settings: digest of the federation's description.
        states, common, base, asks: see `fedpeft.communication.broadcast_digests.BroadcastDigests`; `asks` is None in
            older records, which have no such field.
        time: seconds of Unix time, by the server's clock.
    """

    run: str
    sequence: int
    previous: str
    kind: Kind
    round: int
    cohort: int
    settings: str
    states: dict[str, str]
    common: str
    base: str
    time: int
    asks: str | None = ""

    def to_bytes(self) -> bytes:
        """Return the bytes that are hashed, signed and sent."""
        return _encode_record(self)

    @property
    def label(self) -> str:
        """Name of the round in messages."""
        return "the preparation" if self.kind == "prepare" else f"the {_WORDS[self.kind]} of round {self.round}"

    @property
    def content(self) -> tuple[Any, ...]:
        """All that two records of one phase must have alike, without the digests by form."""
        return self.kind, self.round, self.cohort, self.settings, self.common, self.base, self.asks

    @property
    def digest(self) -> str:
        """The digest of the content and the states: the same for a round that a resumed server records again.

        Clients that were given different content are in different secure sums: it belongs to the terms of one.
        """
        return hash_of(json.dumps([*self.content, self.states], sort_keys=True).encode())

    @property
    def phase(self) -> tuple[str, str]:
        """The phase of a round: the kind of work, and the question of an evaluation."""
        return self.kind, self.asks or ""

    def check_instruction(self, instruction: Instruction) -> None:
        """Refuse an instruction for another phase, or with other settings than the record has for all clients.

        A secure sum is a step of a preparation or a training, and its terms contain the record's digest.

        Raises:
            RunError: the instruction differs from the record.
        """
        summed = instruction.kind == "sum" and self.kind in ("prepare", "train")
        if (self.kind, self.round) != (self.kind if summed else instruction.kind, instruction.round):
            raise RunError(
                f"FP5121 the server sent a task to {instruction.kind} in round {instruction.round}, and has recorded "
                f"{self.label}"
            )
        if not summed and (self.common, self.asks) != (compute_common_digest(instruction), instruction.asks):
            raise RunError(
                f"FP5122 the server sent other settings in {self.label} than it has recorded for all clients"
            )

    def is_consistent(self, other: RoundRecord) -> bool:
        """Return whether both records hand out the same; one may have forms that the other lacks."""
        both = self.states.keys() & other.states.keys()
        return self.content == other.content and all(self.states[name] == other.states[name] for name in both)


_WORDS = {"train": "training", "evaluate": "evaluation"}


@dataclass(frozen=True)
class TaskRecord:
    """What one client receives.

    Attributes:
        run: name of the federation.
        client: its name.
        record: SHA-256 of the round's record.
        digest: of the instruction (`fedpeft.communication.broadcast_digests.compute_instruction_digest`).
        time: seconds of Unix time, by the server's clock.
        own: the fields in which clients' instructions may differ, in plain text; None in older statements.
    """

    run: str
    client: str
    record: str
    digest: str
    time: int
    own: dict[str, int | float | str] | None

    def to_bytes(self) -> bytes:
        """Return the bytes that are signed and sent."""
        return _encode_record(self)


LATER: Final = {"asks", "own"}
"""Fields that older records lack: a run that has such records continues, and its transcripts are read."""


def _encode_record(record: RoundRecord | TaskRecord) -> bytes:
    fields = {name: value for name, value in vars(record).items() if name not in LATER or value is not None}
    return json.dumps(fields, sort_keys=True).encode()


T = typing.TypeVar("T", RoundRecord, TaskRecord)


def parse_record(cls: type[T], content: bytes) -> T:
    """Parse a record from a peer, or from a file.

    Raises:
        RunError: the content is not a legal record.
    """
    if len(content) > RECORD_LIMIT:
        raise RunError(f"FP5082 a record of the server has {len(content)} bytes; at most {RECORD_LIMIT} are legal")
    try:
        fields = json.loads(content)
        names = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or not names - LATER <= set(fields) <= names:
            raise ValueError("other fields")
        for name, check in _LEGAL.items():
            if name in fields and not check(fields[name]):
                raise ValueError(f"{name}={fields[name]!r:.80}")
        made = cls(**{**dict.fromkeys(names & LATER), **fields})
    except (ValueError, RecursionError) as error:
        raise RunError(f"FP5083 the server sent a record that can't be read: {error}") from None
    if made.to_bytes() != content:
        raise RunError(
            "FP5084 the server sent a record in another form than this version writes; use the server's version of "
            "fedpeft"
        )
    return made


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def _is_digest_or_empty(value: object) -> bool:
    return value == "" or _is_digest(value)


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _is_time(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 36


def _is_word(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_WORD and value.isprintable()


_TYPES: Final[dict[str, Any]] = hints(Instruction)

_LEGAL: Final[dict[str, Callable[[object], bool]]] = {
    "run": _is_word,
    "client": _is_word,
    "record": _is_digest,
    "digest": _is_digest,
    "sequence": _count,
    "round": _count,
    "cohort": _count,
    "previous": _is_digest_or_empty,
    "base": _is_digest_or_empty,
    "settings": _is_digest,
    "common": _is_digest,
    "time": _is_time,
    "kind": lambda value: value == "prepare" or value in _WORDS,
    "states": lambda value: (
        isinstance(value, dict)
        and all(len(name) <= 63 and (_is_digest_or_empty(said) or said in UNCOMPARED) for name, said in value.items())
    ),
    "asks": lambda value: isinstance(value, str) and len(value) <= MOST_WORDS,
    "own": lambda value: (
        isinstance(value, dict)
        and list(value) == sorted(value)
        and set(OWN) - ADDED <= set(value) <= set(OWN)
        and all(type(field) is _TYPES[name] for name, field in value.items())
        and all(value[name] for name in ADDED & set(value))
        and all(math.isfinite(field) for field in value.values() if type(field) is float)
        and all(-LARGEST <= field <= LARGEST for field in value.values() if type(field) is int)
        and all(len(field) <= LONGEST_WORD and field.isprintable() for field in value.values() if type(field) is str)
    ),
}


def hash_of(content: bytes) -> str:
    """Return the hash by which the next record, and a task, name a record."""
    return hashlib.sha256(content).hexdigest()


@dataclass
class Chain:
    """Records, one after another.

    Attributes:
        run, settings: what every record must contain.
        records: all so far.
        by_hash: their positions.
    """

    run: str
    settings: str
    records: list[RoundRecord] = field(default_factory=list)
    by_hash: dict[str, int] = field(default_factory=dict)
    head: str = GENESIS
    _phases: dict[tuple[str, str], RoundRecord] = field(default_factory=dict)

    def append(self, content: bytes) -> RoundRecord:
        """Check the next record, add it, and return it.

        Raises:
            RunError: it can't follow the previous records.
        """
        record = parse_record(RoundRecord, content)
        self._check_link(record)
        self._check_order(record)
        if record.kind == "train":
            # A round that is repeated may come out differently.
            self._phases = {phase: before for phase, before in self._phases.items() if phase[0] != "evaluate"}
        self._phases[record.phase] = record
        self.head = hash_of(content)
        self.by_hash[self.head] = len(self.records)
        self.records.append(record)
        return record

    @property
    def round(self) -> int:
        """The last round that clients were asked to train in; 0: none yet."""
        trained = self._phases.get(("train", ""))
        return trained.round if trained else 0

    def get_training_hash(self, round_number: int) -> str:
        """Return the hash of the newest record of the training of a round; of the last record if there is none."""
        newest = reversed(self.by_hash.items())
        wanted = ("train", round_number)
        return next((h for h, at in newest if (self.records[at].kind, self.records[at].round) == wanted), self.head)

    def _check_link(self, record: RoundRecord) -> None:
        said = f"the server's record {record.sequence} ({record.label})"
        if record.run != self.run:
            raise RunError(f"FP5085 {said} belongs to another federation, {record.run}")
        if record.sequence > len(self.records):
            raise RunError(f"FP5086 {said} leaves a gap: the last one known here is {len(self.records) - 1}")
        if record.sequence < len(self.records):
            raise RunError(f"FP5087 {said} is a rollback: {len(self.records)} are known here already")
        if record.previous != self.head:
            raise RunError(
                f"FP5088 {said} is a fork: it does not follow the record before it. The server sent others "
                "another history, or was reset to an older copy of its folder"
            )
        if record.settings != self.settings:
            raise RunError(f"FP5089 {said} is about other settings than the server announced")

    def _check_order(self, record: RoundRecord) -> None:
        said = f"the server's record {record.sequence} ({record.label})"
        wanted = {"train": (self.round, self.round + 1), "evaluate": (self.round,), "prepare": (0,)}[record.kind]
        if record.round > max(wanted):
            raise RunError(f"FP5090 {said} leaves a gap: the last round that was trained is {self.round}")
        if record.round not in wanted or (record.kind == "train" and not record.round):
            raise RunError(f"FP5091 {said} is a rollback: round {self.round} has been trained in")
        if record.kind == "prepare" and self.round:
            raise RunError(f"FP5091 {said} is a rollback: round {self.round} has been trained in")
        before = self._phases.get(record.phase)
        if before is not None and before.round == record.round and not before.is_consistent(record):
            raise RunError(f"FP5092 {said} differs from record {before.sequence}, of the same round")

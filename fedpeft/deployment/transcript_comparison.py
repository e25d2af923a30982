"""Whether two clients of a federation were told the same: their transcripts, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from fedpeft.deployment.round_record import Chain, RoundRecord, TaskRecord, parsed
from fedpeft.deployment.signed_log import Line, SignedLog
from fedpeft.deployment.signing import RECORD, Verifier
from fedpeft.errors import RunError


@dataclass(frozen=True)
class Told:
    """What a transcript holds.

    Attributes:
        chain: the records of all clients' rounds.
        tasks: what this client was sent, and the position of the record that it belongs to.
        signed: whether every statement has a signature.
    """

    chain: Chain
    tasks: Sequence[tuple[int, TaskRecord]]
    signed: bool

    @property
    def client(self) -> str:
        """Its name; empty: it was never asked, or this is the server's own file."""
        return self.tasks[0][1].client if self.tasks else ""


def told(file: Path, verifier: Verifier | None) -> Told:
    """A transcript, checked by itself: no record is missing or changed, and with a `verifier` all are the server's.

    Raises:
        RunError: it is none, or was changed after it was written.
    """
    if not file.is_file():
        raise RunError(f"{file} is no file; a client keeps transcript.jsonl in its folder below --state")
    lines = list(SignedLog(file).read())
    try:
        return _checked(lines, verifier)
    except RunError as error:
        raise RunError(f"{file} proves nothing: {error}") from None


def _checked(lines: Sequence[Line], verifier: Verifier | None) -> Told:
    if not lines or lines[0][0] != RECORD:
        raise RunError("it does not begin with the record of a round")
    first = parsed(RoundRecord, lines[0][1].content)
    chain = Chain(first.run, first.settings)
    tasks: list[tuple[int, TaskRecord]] = []
    for kind, statement in lines:
        if kind == RECORD:
            time = chain.append(statement.content).time
        else:
            task = parsed(TaskRecord, statement.content)
            time = task.time
            if (
                task.run != chain.run
                or task.record not in chain.by_hash
                or (tasks and task.client != tasks[0][1].client)
            ):
                raise RunError("it holds a task of another client, or of a round that is not in it")
            tasks.append((chain.by_hash[task.record], task))
        if verifier is not None:
            verifier.check(kind, statement, time)
    return Told(chain, tasks, all(statement.signature for _, statement in lines))


@dataclass(frozen=True)
class Difference:
    """The first record that differs.

    Attributes:
        position: of the record.
        called: the round that it is of.
        names: the fields that differ.
    """

    position: int
    called: str
    names: Sequence[str]


def first_difference(one: Told, other: Told) -> Difference | None:
    """Where what both were told parts; None: as far as both go, they were told the same."""
    for position, (a, b) in enumerate(zip(one.chain.records, other.chain.records, strict=False)):
        if a != b:
            names = [f.name for f in fields(RoundRecord) if getattr(a, f.name) != getattr(b, f.name)]
            called = a.called if a.called == b.called else f"{a.called} and {b.called}"
            return Difference(position, called, names)
    return None


def side_by_side(one: Told, other: Told) -> Iterator[tuple[str, str, str]]:
    """Each record that either was given a task in, and digests of what they were sent last in it; empty: nothing."""
    sent = [{position: task.digest for position, task in told.tasks} for told in (one, other)]
    longer = max(one.chain.records, other.chain.records, key=len)
    for position in sorted(sent[0].keys() | sent[1].keys()):
        yield longer[position].called, sent[0].get(position, ""), sent[1].get(position, "")

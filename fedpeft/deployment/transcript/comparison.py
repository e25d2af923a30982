"""Comparison of two clients' transcripts, which shows whether the server told both the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from fedpeft.communication.broadcast_digests import UNCOMPARED
from fedpeft.deployment.identity.signing import RECORD, Verifier
from fedpeft.deployment.transcript.round_record import DIGEST, Chain, RoundRecord, TaskRecord, parse_record
from fedpeft.deployment.transcript.signed_log import Line, SignedLog
from fedpeft.errors import RunError


@dataclass(frozen=True)
class TranscriptContent:
    """The content of a transcript.

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
        """The client's name; empty: it was never asked, or this is the server's own file."""
        return self.tasks[0][1].client if self.tasks else ""


def read_transcript(file: Path, verifier: Verifier | None) -> TranscriptContent:
    """Read and check a transcript: no record is missing or changed, and with a `verifier` all are the server's.

    Raises:
        RunError: the file is not a transcript, or was changed after it was written.
    """
    if not file.is_file():
        raise RunError(f"FP5128 {file} is not a file; a client keeps transcript.jsonl in its folder below --state")
    lines = list(SignedLog(file).read())
    try:
        return _check_lines(lines, verifier)
    except RunError as error:
        raise RunError(f"FP5129 {file} proves nothing: {error}") from None


def _check_lines(lines: Sequence[Line], verifier: Verifier | None) -> TranscriptContent:
    if not lines or lines[0][0] != RECORD:
        raise RunError("FP5130 it does not begin with the record of a round")
    first = parse_record(RoundRecord, lines[0][1].content)
    chain = Chain(first.run, first.settings)
    tasks: list[tuple[int, TaskRecord]] = []
    for kind, statement in lines:
        if kind == RECORD:
            time = chain.append(statement.content).time
        else:
            task = parse_record(TaskRecord, statement.content)
            time = task.time
            if (
                task.run != chain.run
                or task.record not in chain.by_hash
                or (tasks and task.client != tasks[0][1].client)
            ):
                raise RunError("FP5131 it holds a task of another client, or of a round that is not in it")
            tasks.append((chain.by_hash[task.record], task))
        if verifier is not None:
            verifier.check(kind, statement, time)
    return TranscriptContent(chain, tasks, all(statement.signature for _, statement in lines))


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


def find_first_difference(one: TranscriptContent, other: TranscriptContent) -> Difference | None:
    """Return the first record in which two transcripts differ; None: as far as both go, they agree."""
    for position, (a, b) in enumerate(zip(one.chain.records, other.chain.records, strict=False)):
        if a != b:
            names = [f.name for f in fields(RoundRecord) if getattr(a, f.name) != getattr(b, f.name)]
            called = a.label if a.label == b.label else f"{a.label} and {b.label}"
            return Difference(position, called, names)
    return None


@dataclass(frozen=True)
class Verdict:
    """Whether two clients were told the same, and the lines that say so to a user."""

    same: bool
    lines: Sequence[str]


def compare_transcripts(one: TranscriptContent, other: TranscriptContent) -> Verdict:
    """Return whether two clients were told the same, as far as both transcripts go.

    Raises:
        RunError: both transcripts are of one client.
    """
    if one.chain.run != other.chain.run:
        return Verdict(False, [f"different: these are two federations, {one.chain.run} and {other.chain.run}"])
    difference = find_first_difference(one, other)
    if difference is not None:
        where = f"from record {difference.position} ({difference.called}) on"
        return Verdict(False, [f"different: {where}, they differ in {', '.join(difference.names)}"])
    if one.client and one.client == other.client:
        raise RunError(
            f"FP5228 both files are transcripts of {one.client}, which proves nothing about other clients; give "
            "another client's transcript, or the server's rounds.signed.jsonl"
        )
    short, long = sorted((len(one.chain.records), len(other.chain.records)))
    lines = [f"same: model and settings of {short} records, up to {one.chain.records[short - 1].label}"]
    if long > short:
        lines.append(f"only one of both knows {long - short} more records")
    for name, count in sorted(count_own_differences(one, other).items()):
        lines.append(
            f"not alike: {name} in {count} records, which the server may choose for each client outside secure sums"
        )
    for reason, count in count_uncompared_states(one).items():
        lines.append(f"not comparable: the model of {count} records: {reason}")
    return Verdict(True, lines)


def pair_records(one: TranscriptContent, other: TranscriptContent) -> Iterator[tuple[str, str, str]]:
    """Yield each record that either client was given a task in, and what both were sent in it; empty: nothing."""
    sent = [_select_work(told) for told in (one, other)]
    longer = max(one.chain.records, other.chain.records, key=len)
    for position in sorted(sent[0].keys() | sent[1].keys()):
        first, second = (describe_task(tasks[position]) if position in tasks else "" for tasks in sent)
        yield longer[position].label, first, second


def describe_task(task: TaskRecord) -> str:
    """Return form, steps and precisions of a task, as far as the server has chosen them, and the digest of the task."""
    own = task.own or {}
    words = [f"rank {own['rank']}, alpha {own['alpha']:g}"] if own.get("rank") else []
    words += [f"{name} {own[name]}" for name in ("steps", "bits", "base_precision") if own.get(name)]
    words += [f"adapter {own['adapter_precision']}"] if own.get("adapter_precision", "fp32") != "fp32" else []
    return ", ".join([*words, task.digest[:16]])


def count_own_differences(one: TranscriptContent, other: TranscriptContent) -> Mapping[str, int]:
    """Return in how many records the server has given both clients a different form, or different work, by field."""
    first, second = _select_work(one), _select_work(other)
    counts: Counter[str] = Counter()
    for position in first.keys() & second.keys():
        mine, theirs = first[position].own or {}, second[position].own or {}
        counts.update(name for name in mine.keys() & theirs.keys() - _PLACE if mine[name] != theirs[name])
    return counts


def count_uncompared_states(told: TranscriptContent) -> Mapping[str, int]:
    """Return in how many records clients can't compare a model, by the reason."""
    counts: Counter[str] = Counter()
    for record in told.chain.records:
        reasons = {digest for digest in record.states.values() if not DIGEST.fullmatch(digest)}
        counts.update(UNCOMPARED.get(reason, "it has no digest") for reason in reasons)
    return counts


_PLACE: Final = {"client", "acknowledged", "attempt"}
"""Own fields that name who is asked, and when, and not for what."""


def _select_work(told: TranscriptContent) -> dict[int, TaskRecord]:
    """Return by position the last task of each record; in a secure sum, the step in which examples are read."""
    tasks: dict[int, TaskRecord] = {}
    for position, task in told.tasks:
        before = tasks.get(position)
        if before is None or (task.own or {}).get("rank") or not (before.own or {}).get("rank"):
            tasks[position] = task
    return tasks

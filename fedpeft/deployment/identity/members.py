"""Who belongs to a federation of real clients: names from certificates, and the client ids that stand for them.

Ids are given when the federation starts, in the order of names, so that the same clients have the same ids (and with
them the same random draws) whoever connected first; who comes later gets the next one. The list is stored before
anything depends on it: a restarted server knows its clients again.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedpeft.errors import RunError
from fedpeft.machine import files
from fedpeft.privacy.declared_terms import DeclaredTerms


@dataclass
class Member:
    """A client.

    Attributes:
        name: of its certificate.
        id: its client id; -1: the federation has not started.
        rank: the largest LoRA rank that it can hold; 0: any.
        dropped: why it may not come back; empty: it may.
        terms: what a participation costs it, where it adds noise itself.
        rows: that it has joined with; 0: not known, from a list of an earlier version.
    """

    name: str
    id: int = -1
    rank: int = 0
    dropped: str = ""
    terms: DeclaredTerms | None = None
    rows: int = 0

    def __post_init__(self) -> None:
        whole = all(isinstance(number, int) for number in (self.id, self.rank, self.rows))
        if not whole or not isinstance(self.name, str) or not isinstance(self.dropped, str):
            raise TypeError(f"{self.name!r:.50} is no client")
        if isinstance(self.terms, dict):  # as stored
            try:
                self.terms = DeclaredTerms(**self.terms)
            except RunError:  # of an earlier version, which took any: it declares them anew before it is asked
                self.terms = None


class Roster:
    """The members, in a JSON file.

    Args:
        file: where they are stored.
        places: how many there may be.
        authority: the certificate (PEM) that signs theirs; empty: they have none.
        revoked: serial numbers of certificates that count no more.

    Attributes:
        since: when their server began to listen, by the monotonic clock.
        received_bytes, sent_bytes: on the wire since the run began, as of the last `count`.

    Raises:
        RunError: the file can't be read.
    """

    def __init__(self, file: Path, places: int, authority: bytes = b"", revoked: Container[int] = ()) -> None:
        self._file = file
        self._lock = threading.Lock()
        self.places, self.authority, self.revoked = places, authority, revoked
        self.run = secrets.token_hex(8)
        self.started = False
        self.since = time.monotonic()
        self.received_bytes = self.sent_bytes = 0
        self._members: dict[str, Member] = {}
        self._stored = False
        if not file.exists() and not file.is_symlink():
            return
        try:
            stored = files.read_json(file)
            self.run, self.started = stored["run"], stored["started"]
            self.received_bytes, self.sent_bytes = stored.get("wire_bytes", (0, 0))  # an earlier version kept none
            self._members = {entry["name"]: Member(**entry) for entry in stored["members"]}
            self.received_bytes, self.sent_bytes = int(self.received_bytes), int(self.sent_bytes)
            if not isinstance(self.run, str) or not isinstance(self.started, bool):
                raise TypeError("it names no run")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"FP5075 the list of clients {file} can't be read ({error}); bring it back from a copy, or start a new "
                "run"
            ) from None
        self._stored = True

    @property
    def members(self) -> list[Member]:
        """All of them, in the order of ids."""
        with self._lock:
            return sorted(self._members.values(), key=lambda m: (m.id, m.name))

    def find(self, name: str) -> Member | None:
        """The member called `name`."""
        return self._members.get(name)

    def called(self, client: int) -> str:
        """The name of the client with this id; of a place that nobody has taken its number."""
        with self._lock:
            return next((m.name for m in self._members.values() if m.id == client), f"client {client}")

    def enter(self, name: str, rank: int, terms: DeclaredTerms | None = None, rows: int = 0) -> Member | None:
        """The member called `name`, perhaps a new one; None: all places are taken.

        Raises:
            RunError: the list can't be written.
        """
        with self._lock:
            member = self._members.get(name)
            if member is None:
                if len(self._members) >= self.places:
                    return None
                member = self._members[name] = Member(name)
                if self.started:
                    member.id = len(self._members) - 1
            elif self._stored and (member.rank, member.terms, member.rows) == (rank, terms, rows):
                return member
            member.rank, member.terms, member.rows = rank, terms, rows
            self._store()
            return member

    def drop(self, member: Member, reason: str) -> None:
        """The member may not come back."""
        with self._lock:
            member.dropped = reason
            self._store()

    def readmit(self, names: Sequence[str]) -> list[str]:
        """The members called `names` may come back; returns those of them that had been dropped.

        Raises:
            RunError: one of them is no member, and nobody is taken back; or the list can't be written.
        """
        with self._lock:
            if unknown := [name for name in names if name not in self._members]:
                dropped = ", ".join(sorted(m.name for m in self._members.values() if m.dropped)) or "none"
                raise RunError(f"FP5076 {unknown[0]!r} is no client of this federation; it has dropped: {dropped}")
            back = [name for name in names if self._members[name].dropped]
            for name in back:
                self._members[name].dropped = ""
            self._store()
            return back

    def count(self, received: int, sent: int) -> None:
        """Keep how many bytes have been on the wire since the run began."""
        with self._lock:
            if (received, sent) != (self.received_bytes, self.sent_bytes):
                self.received_bytes, self.sent_bytes = received, sent
                self._store()

    def start(self) -> None:
        """Give ids to those who are there."""
        with self._lock:
            if self.started:
                return
            for client_id, name in enumerate(sorted(self._members)):
                self._members[name].id = client_id
            self.started = True
            self._store()

    def _store(self) -> None:
        content = {
            "run": self.run,
            "started": self.started,
            "wire_bytes": [self.received_bytes, self.sent_bytes],
            "members": [asdict(m) for m in self._members.values()],
        }
        self._stored = False
        try:
            files.replace(self._file, json.dumps(content, indent=1).encode(), private=True)
        except OSError as error:
            raise RunError(f"FP5077 the list of clients {self._file} can't be written: {error.strerror}") from None
        self._stored = True

"""The members of a federation of real clients: names from certificates, and the client ids that stand for them.

Ids are given when the federation starts, in the order of names. So the same clients have the same ids, and with them
the same random draws, whoever connected first. A client that joins later gets the next id. The list is stored before
anything depends on it, so a restarted server finds its clients again.
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
        name: name in its certificate.
        id: its client id; -1: the federation has not started.
        rank: the largest LoRA rank that it can hold; 0: any.
        dropped: why it may not come back; empty: it may.
        terms: what a participation costs it, if it adds noise itself.
        rows: number of examples that it has joined with; 0: unknown, from a list of an earlier version.
    """

    name: str
    id: int = -1
    rank: int = 0
    dropped: str = ""
    terms: DeclaredTerms | None = None
    rows: int = 0

    def __post_init__(self) -> None:
        """Check the types, and restore the terms from a stored list."""
        whole = all(isinstance(number, int) for number in (self.id, self.rank, self.rows))
        if not whole or not isinstance(self.name, str) or not isinstance(self.dropped, str):
            raise TypeError(f"{self.name!r:.50} is no client")
        if isinstance(self.terms, dict):  # as stored
            try:
                self.terms = DeclaredTerms(**self.terms)
            except RunError:  # from an earlier version, which checked nothing: the client declares them anew
                self.terms = None


class Roster:
    """The members, in a JSON file.

    Args:
        file: where they are stored.
        places: largest number of members.
        authority: the certificate (PEM) that signs theirs; empty: they have none.
        revoked: serial numbers of revoked certificates.

    Attributes:
        since: when their server began to listen, by the monotonic clock.
        received_bytes, sent_bytes: on the wire since the run began, as of the last `count`.

    Raises:
        RunError: the file can't be read.
    """

    def __init__(self, file: Path, places: int, authority: bytes = b"", revoked: Container[int] = ()) -> None:
        """Read the stored members, or begin a new federation with a random name."""
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
                f"FP5075 the list of clients {file} can't be read ({error}); restore it from a backup, or start "
                "a new run"
            ) from None
        self._stored = True

    @property
    def members(self) -> list[Member]:
        """All members, in the order of ids."""
        with self._lock:
            return sorted(self._members.values(), key=lambda m: (m.id, m.name))

    def find(self, name: str) -> Member | None:
        """Return the member called `name`; None: there is none."""
        return self._members.get(name)

    def get_name(self, client: int) -> str:
        """Return the name of the client with this id; for a free place, its number."""
        with self._lock:
            return next((m.name for m in self._members.values() if m.id == client), f"client {client}")

    def enter(self, name: str, rank: int, terms: DeclaredTerms | None = None, rows: int = 0) -> Member | None:
        """Return the member called `name`, perhaps a new one; None: all places are taken.

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
        """Drop a member, which may not come back."""
        with self._lock:
            member.dropped = reason
            self._store()

    def readmit(self, names: Sequence[str]) -> list[str]:
        """Take the members called `names` back, and return those of them that had been dropped.

        Raises:
            RunError: one of them is not a member, and nobody is taken back; or the list can't be written.
        """
        with self._lock:
            if unknown := [name for name in names if name not in self._members]:
                dropped = ", ".join(sorted(m.name for m in self._members.values() if m.dropped)) or "none"
                raise RunError(
                    f"FP5076 no client of this federation is called {unknown[0]!r}; it has dropped: {dropped}"
                )
            back = [name for name in names if self._members[name].dropped]
            for name in back:
                self._members[name].dropped = ""
            self._store()
            return back

    def count(self, received: int, sent: int) -> None:
        """Store the number of bytes on the wire since the run began."""
        with self._lock:
            if (received, sent) != (self.received_bytes, self.sent_bytes):
                self.received_bytes, self.sent_bytes = received, sent
                self._store()

    def start(self) -> None:
        """Give ids to the present members."""
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

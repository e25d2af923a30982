"""A client's own state between rounds (error feedback, control variates, private factors), versioned by round.

State is staged under the round in which it was made. It becomes valid when the server's next instruction to this client
acknowledges that round. A version that the server never acknowledged is never read. So a kill, a rejected payload or a
lost reply applies nothing twice, and a resumed run finds its state.

All clients are in one SQLite file, because a million folders would be too many. The file reveals who took part, and its
content is private: nobody else may read it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from fedpeft.communication.messages import Instruction
from fedpeft.errors import GoneError, RunError
from fedpeft.machine import files
from fedpeft.peft.adapter import State


def select_section(state: State, label: str) -> State:
    """Return the section `label` of a client's state: the names below the label and a slash, without them."""
    start = f"{label}/"
    return {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}


def add_label(label: str, part: State) -> State:
    """Return `part` as the section `label` of a client's state: the inverse of `select_section`."""
    return {f"{label}/{name}": tensor for name, tensor in part.items()}


def load_kept_state(store: ClientStore, instruction: Instruction, summed: bool) -> State | None:
    """Return what a client has kept of earlier rounds; None: nothing.

    Args:
        store: of the client's states.
        instruction: the server's instruction.
        summed: whether the client is a real one in a secure sum. There the server does not choose among its states: it
            goes on from its newest one. From the acknowledged one it only takes the broadcast that the next one builds
            on, and what that leads to is compared.

    Raises:
        GoneError, RunError: see `ClientStore.load`.
    """
    client, train = instruction.client, instruction.kind == "train"  # proves that the server stored its round
    newest = store.find_newest(client, instruction.round) if summed else 0
    state = store.load(client, instruction.acknowledged, tidy=train, beside=newest)
    if not summed:
        return state
    own = store.load(client, newest, tidy=False) or {}
    own = {name: tensor for name, tensor in own.items() if not name.startswith("held/")}
    return own | add_label("held", select_section(state or {}, "held"))


FILE = "states.sqlite"

PATIENCE = 300.0
"""Seconds that a process waits for others that are writing."""

FORMAT = 1
"""Number of the file's frozen format, its `user_version` (docs/api.md)."""

TABLE = """
CREATE TABLE IF NOT EXISTS states (
    client INTEGER, round INTEGER, state BLOB NOT NULL, PRIMARY KEY (client, round)
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class ClientStore:
    """States in `folder/states.sqlite`; processes may share it.

    Each call opens the file anew: connections survive neither a fork nor a change of threads.
    """

    folder: Path
    _recorded: dict[int, tuple[int, int]] = field(default_factory=dict, init=False, compare=False, repr=False)
    """The two rounds of each client whose states stay at the next `stage`.

    These are the one that the server has stored safely, and the one that the client itself continues from.
    """

    @property
    def file(self) -> Path:
        """The file that holds all states."""
        return self.folder / FILE

    def stage(self, client: int, round_number: int, state: State) -> None:
        """Store `state` as that of `round_number`, whole or not at all; replace an earlier attempt of the same round.

        Raises:
            RunError: the disk is full or can't be written.
        """
        try:
            if not self.file.exists():
                files.make_private_folder(self.folder)
                files.open_for_writing(self.file, "ab", private=True).close()
            with self._open_database() as database:
                _create_table(database)
                if client in self._recorded:
                    database.execute(
                        "DELETE FROM states WHERE client = ? AND round NOT IN (?, ?, ?)",
                        (client, round_number, *self._recorded.pop(client)),
                    )
                database.execute("INSERT OR REPLACE INTO states VALUES (?, ?, ?)", (client, round_number, save(state)))
        except (OSError, sqlite3.Error) as error:
            raise RunError(f"FP5001 the state of client {client} can't be written to {self.file}: {error}") from error

    def load(self, client: int, acknowledged: int, tidy: bool = True, beside: int = 0) -> State | None:
        """Return the state of round `acknowledged`; None: that is round 0, which has no state.

        With `tidy`, the next `stage` removes all versions other than this one and the one of the round `beside`. Set it
        only for a round that the server has stored safely.

        Raises:
            GoneError: the server acknowledged a round whose state is gone.
            RunError: the state is damaged.
        """
        if tidy:
            self._recorded[client] = acknowledged, beside
        if not acknowledged:
            return None
        content = self.read_content(client, acknowledged)
        if content is None:
            raise GoneError(
                f"FP5009 the state of client {client} after round {acknowledged} is missing from {self.folder}; "
                "restore it from a backup, since it can't be computed again"
            )
        try:
            return load(content)
        except SafetensorError as error:
            raise RunError(f"FP5010 the state of client {client} in {self.file} can't be read: {error}") from error

    def find_newest(self, client: int, before: int) -> int:
        """Return the last round before `before` that has a state, acknowledged or not; 0 if there is none.

        Raises:
            RunError: the file can't be read.
        """
        try:
            if not self.file.exists():
                return 0
            files.check_regular_file(self.file)
            with self._open_database() as database:
                _create_table(database)
                query = "SELECT MAX(round) FROM states WHERE client = ? AND round < ?"
                return int(database.execute(query, (client, before)).fetchone()[0] or 0)
        except (OSError, sqlite3.Error) as error:
            raise RunError(f"FP5010 the state of client {client} in {self.file} can't be read: {error}") from error

    def read_content(self, client: int, round_number: int) -> bytes | None:
        """Return the state of a round as it is stored; None: there is none, as for round 0.

        Raises:
            RunError: the file can't be read.
        """
        try:
            # The file may have been begun and hold nothing, not even a table: after a kill, or on a full disk.
            return self._read_content(client, round_number) if round_number else None
        except (OSError, sqlite3.Error) as error:
            raise RunError(f"FP5010 the state of client {client} in {self.file} can't be read: {error}") from error

    def _read_content(self, client: int, round_number: int) -> bytes | None:
        if not self.file.exists():
            return None
        files.check_regular_file(self.file)
        with self._open_database() as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'states'").fetchone():
                return None  # another process may just have made the file, and not its table
            query = "SELECT state FROM states WHERE client = ? AND round = ?"
            row = database.execute(query, (client, round_number)).fetchone()
        return None if row is None else bytes(row[0])

    @contextmanager
    def _open_database(self) -> Iterator[sqlite3.Connection]:
        """Open a connection whose changes are all on disk once it is closed, or none of them if there was an error."""
        with closing(sqlite3.connect(self.file, PATIENCE)) as database:
            database.execute("PRAGMA journal_mode = TRUNCATE")  # unlike WAL it works on shared file systems, too
            database.execute("PRAGMA synchronous = FULL")
            if (number := _get_format(database)) not in (0, FORMAT):
                raise sqlite3.DatabaseError(f"it has the format {number}, and this version of fedpeft reads {FORMAT}")
            with database:
                yield database


def _get_format(database: sqlite3.Connection) -> int:
    """Return the number of the file's format; 0: the file has no table yet."""
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _create_table(database: sqlite3.Connection) -> None:
    """Create the table and mark the file with `FORMAT`, unless that is done."""
    if not _get_format(database):
        database.execute(TABLE)
        database.execute(f"PRAGMA user_version = {FORMAT}")

"""The privacy ledger: the spending of one account per privacy unit, over all rounds and resumes.

A charge is written and synced to disk before anything is computed from the data of its round. So whatever stops the run
in between can only make the ledger overstate the spending. The file is append-only: no charge is ever taken back.

A round that is repeated after a kill with identical inputs releases identical bits and is charged once. It keeps its
attempt, and thus its noise. With any other input the same noise would reveal the difference. So such a round is a new
attempt with new noise and a new charge. The fingerprint of a round's inputs distinguishes the two cases.

    {"version": 1, "unit": "client", "dp_delta": 0.001, ...}                            first line
    {"round": 3, "attempt": 0, "fingerprint": "...", "charges": [[7, 1.2, 0.05, 10]]}   unit, z, q, releases

A charge of Skellam noise has a fifth number, c (`fedpeft.privacy.accountant.Event`). If the round left out clients
because their budget is spent, "spent" lists them.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedpeft.errors import PrivacyError
from fedpeft.machine.files import append, parse_json, read
from fedpeft.privacy.accountant import Event

VERSION = 1

POPULATION = -1
"""The account of all clients together."""

Charges = Mapping[int, tuple[Event, int]]
"""The type and number of releases of each account (a client's id, or POPULATION)."""


class Ledger:
    """The accounts in one file.

    Args:
        path: the file, which is created if it is missing.
        terms: the meaning of the charges (unit, delta, ...); a ledger is never continued on other terms.

    Attributes:
        spent: the spending of each account.
        left_out: the accounts that were ever left out because their budgets were spent.
        newest: the fingerprint of the last charge; empty: there is none.

    Raises:
        PrivacyError: the file can't be read, is damaged, or was begun on other terms.
    """

    def __init__(self, path: Path, terms: Mapping[str, Any]) -> None:
        """Read the accounts in the file, or begin a new file with these terms."""
        self.path = path
        self.spent: dict[int, dict[Event, int]] = {}
        self.left_out: set[int] = set()
        self.newest = ""
        self._attempts: dict[int, list[tuple[str, frozenset[int]]]] = {}
        self._lines: list[Mapping[str, Any]] = []
        header = {"version": VERSION, **terms}
        if path.exists() and not path.is_file():
            raise PrivacyError(f"FP7041 the privacy ledger {path} is not a file; restore it, or start a new run")
        if not path.exists() or not self._read(header):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(header)

    def _read(self, header: Mapping[str, Any]) -> bool:
        """Read the accounts; return False if the file lacks even a first line."""
        try:
            with open(self.path, "r+b") as file:
                content = file.read()
                whole = content.rfind(b"\n") + 1
                if whole < len(content):  # a charge that a kill cut short: nothing was released under it
                    file.truncate(whole)
                    os.fsync(file.fileno())
            lines = [parse_json(line) for line in content[:whole].splitlines()]
            if not lines:
                return False
            if lines[0] != json.loads(json.dumps(header)):
                raise PrivacyError(
                    f"FP7042 {self.path} was begun on other terms: {_describe_changes(lines[0], header)}; continue "
                    "with the settings and the version of fedpeft that it was begun with, or start a new run"
                )
            for line in lines[1:]:
                self._add_line(line)
        except OSError as error:
            raise PrivacyError(f"FP7043 the privacy ledger {self.path} can't be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise PrivacyError(
                f"FP7044 the privacy ledger {self.path} is damaged ({error}), so what was spent is unknown; start a "
                "new run"
            ) from error
        return True

    def _add_line(self, line: Mapping[str, Any]) -> None:
        accounts = frozenset(int(charge[0]) for charge in line["charges"])
        self.left_out.update(int(account) for account in line.get("spent", ()))
        self.newest = str(line["fingerprint"])
        self._attempts.setdefault(int(line["round"]), []).append((self.newest, accounts))
        for account, *charge in line["charges"]:
            events = self.spent.setdefault(int(account), {})
            event, count = _read_release(*charge)
            events[event] = events.get(event, 0) + count
        self._lines.append(line)

    def _write(self, line: Mapping[str, Any]) -> None:
        """Append a line, and return only when it is on the disk; if it does not fit, no part of it stays."""
        try:
            append(self.path, json.dumps(line).encode() + b"\n", private=True)
        except OSError as error:
            raise PrivacyError(f"FP7045 the privacy ledger {self.path} can't be written: {error.strerror}") from error

    def list_charges(self) -> Iterator[tuple[int, str, list[tuple[Event, int]]]]:
        """Yield all charges, oldest first: round, fingerprint, and the types of release with their numbers."""
        for line in self._lines:
            yield (
                int(line["round"]),
                str(line["fingerprint"]),
                [_read_release(*charge) for _, *charge in line["charges"]],
            )

    def releases(self, account: int) -> int:
        """Return the number of releases of any type that an account was charged with."""
        return sum(self.spent.get(account, {}).values())

    def after(self, account: int, event: Event, count: int) -> dict[Event, int]:
        """Return the spending of an account after one more charge."""
        events = dict(self.spent.get(account, {}))
        events[event] = events.get(event, 0) + count
        return events

    def attempt(self, round_number: int, fingerprint: str) -> int | None:
        """Return the attempt of a round that was charged with these inputs; None: it would be a new one."""
        tried = [fingerprint for fingerprint, _ in self._attempts.get(round_number, [])]
        return tried.index(fingerprint) if fingerprint in tried else None

    def attempts(self, round_number: int) -> int:
        """Return how often a round was charged."""
        return len(self._attempts.get(round_number, []))

    def accounts(self, round_number: int, attempt: int) -> frozenset[int]:
        """Return the accounts that an attempt of a round was charged to."""
        return self._attempts[round_number][attempt][1]

    def count_rounds(self, before: int) -> Mapping[int, int]:
        """Count the rounds in which each account was charged, or left out because its budget was spent.

        Args:
            before: rounds from 1 up to this one count, without it.
        """
        rounds: dict[int, set[int]] = {}
        for line in self._lines:
            if 0 < int(line["round"]) < before:
                accounts = (*(charge[0] for charge in line["charges"]), *line.get("spent", ()))
                rounds.setdefault(int(line["round"]), set()).update(map(int, accounts))
        return Counter(account for accounts in rounds.values() for account in accounts)

    def charge(self, round_number: int, fingerprint: str, charges: Charges, left_out: Collection[int] = ()) -> int:
        """Charge a round before its work begins, and return its attempt, counted from 0.

        A round that was charged with this fingerprint is not charged again.

        Args:
            round_number: the round, from 1; 0: the release before round 1.
            fingerprint: a digest of the round's inputs.
            charges: the releases of each account.
            left_out: accounts that the round leaves out because their budgets are spent.
        """
        known = self.attempt(round_number, fingerprint)
        if known is not None:
            return known
        attempt = self.attempts(round_number)
        entries = [
            [account, event.noise, event.rate, count, *([event.rounding] if event.rounding else [])]
            for account, (event, count) in charges.items()
        ]
        line = {"round": round_number, "attempt": attempt, "fingerprint": fingerprint, "charges": entries}
        line |= {"spent": sorted(left_out)} if left_out else {}
        self._write(line)
        self._add_line(line)
        return attempt


def _describe_changes(begun: object, now: Mapping[str, Any]) -> str:
    """Describe how the terms of a ledger, which may have any form, differ from the present ones."""
    if not isinstance(begun, dict):
        return f"{begun!r:.100}"
    names = [name for name in {**begun, **now} if begun.get(name) != now.get(name)]
    return ", ".join(f"{name} was {begun.get(name)!r:.100} and would be {now.get(name)!r:.100}" for name in names)


def _read_release(noise: float, rate: float, count: int, rounding: float = 0.0) -> tuple[Event, int]:
    """Return the type and number of releases that a charge contains."""
    return Event(float(noise), float(rate), float(rounding)), int(count)


def terms_in(path: Path) -> Mapping[str, Any] | None:
    """Return the terms that the ledger in `path` was begun on; None: it has none yet.

    Raises:
        PrivacyError: the file can't be read.
    """
    try:
        first, end, _ = read(path).partition(b"\n")
        found = parse_json(first) if end else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise PrivacyError(f"FP7043 the privacy ledger {path} can't be read: {error}") from error
    if found is not None and not isinstance(found, dict):
        raise PrivacyError(f"FP7046 the privacy ledger {path} is damaged: its first line holds no terms")
    return found

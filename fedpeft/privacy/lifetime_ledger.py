"""What has been released about one data set, by all runs of all federations that have trained on it on this machine.

A server names its runs, and could begin a new one whenever a budget is spent. So a client's own budget does not count
by run: beside the ledger of the run (`fedpeft.privacy.client_protection`) every charge is written here, in a file for
the data set, whoever the server is. The data set is told by its path: a copy under another name is another one.

    account 0    training rows: of every release
    account 1    whole clients: of releases that hide all of a client's data, which hide each of its rows as well

A charge is written here first. A kill between the two books makes this one say too much, never too little; and what
the ledger of a run holds is carried over when the run is opened, should this file be lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fedpeft.errors import PrivacyError
from fedpeft.privacy.accountant import Event, epsilon, is_within
from fedpeft.privacy.ledger import Ledger

SECONDS = 60.0
"""How long to wait for another client of this machine that writes its own charge."""

ACCOUNTS = {"training row": (0,), "client": (0, 1)}
"""Which accounts a release is charged to, by the unit that its mechanism hides."""


class LifetimeLedger:
    """The book of one data set.

    Args:
        folder: of all such books.
        data: the file with the rows.
        unit: that the run's mechanism hides.
        budget: the largest epsilon over all runs; None: any.

    Raises:
        PrivacyError: the book can't be read or written.
    """

    def __init__(self, folder: Path, data: Path, unit: str, budget: float | None) -> None:
        self.data = data.resolve()
        self.path = folder / f"{hashlib.sha256(str(self.data).encode()).hexdigest()[:16]}.jsonl"
        self.budget = budget
        self._accounts = ACCOUNTS[unit]

    @contextmanager
    def _book(self) -> Iterator[Ledger]:
        """The book, read anew, while nobody else reads or writes it."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock"), timeout=SECONDS):
                yield Ledger(self.path, {"data": str(self.data)})
        except Timeout:
            raise PrivacyError(f"FP7047 another process has held {self.path} for {SECONDS:g} s; end it") from None
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            raise PrivacyError(f"FP7045 the privacy ledger {self.path} can't be written: {error}") from error

    def carry(self, run: Ledger, known_noise: bool = False) -> None:
        """Take over what a run's ledger holds, as far as it is not here yet; noise that is known counts as none."""
        with self._book() as book:
            for round_number, fingerprint, releases in run.list_charges():
                if known_noise:
                    releases = [(event._replace(noise=0.0), count) for event, count in releases]
                self._write(book, round_number, fingerprint, releases)

    def charge(self, round_number: int, fingerprint: str, event: Event, count: int, delta: float) -> bool:
        """Write a charge, or return False: it would exceed the budget. One that is here already is not written again.

        Args:
            round_number, fingerprint: of the run's own ledger.
            event, count: what is about to be released, and how often.
            delta: that the budget is stated at.
        """
        with self._book() as book:
            known = book.attempt(round_number, fingerprint) is not None
            if not known and not self._affords(book, event, count, delta):
                return False
            self._write(book, round_number, fingerprint, [(event, count)])
            return True

    def _write(self, book: Ledger, round_number: int, fingerprint: str, releases: list[tuple[Event, int]]) -> None:
        for event, count in releases:  # one: a client charges a round with one kind of release
            book.charge(round_number, fingerprint, dict.fromkeys(self._accounts, (event, count)))

    def allows(self, event: Event, count: int, delta: float) -> bool:
        """Whether the budget allows a charge, as the book stands."""
        with self._book() as book:
            return self._affords(book, event, count, delta)

    def check(self, event: Event, count: int, delta: float) -> None:
        """Refuse to begin a run that could not ask even once.

        Raises:
            PrivacyError: the budget does not allow this charge.
        """
        if self.budget is None:
            return
        with self._book() as book:
            if not self._affords(book, event, count, delta):
                spent = max(epsilon(book.spent.get(own, {}), delta) for own in self._accounts)
                raise PrivacyError(
                    f"FP7048 of epsilon {self.budget:g} at dp_delta {delta:.2g} earlier runs on {self.data} have spent "
                    f"{spent:.3g}, and what is left does not allow a single round; give a larger "
                    "--max-epsilon if you accept that"
                )

    def _affords(self, book: Ledger, event: Event, count: int, delta: float) -> bool:
        """Whether all that the charge is written to stays within the budget: what hides a client hides its rows, too,
        and other runs may have released more of the rows than of the client."""
        if self.budget is None:
            return True
        return all(is_within(book.after(own, event, count), delta, self.budget) for own in self._accounts)

    def spent_in(self, book: Ledger, delta: float) -> float:
        """Epsilon of all runs, of the mechanism's own unit."""
        return epsilon(book.spent.get(self._accounts[-1], {}), delta)

    def spent(self, delta: float) -> float:
        """Epsilon of all runs on these rows so far, at `delta`."""
        with self._book() as book:
            return self.spent_in(book, delta)

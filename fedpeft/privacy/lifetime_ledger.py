"""The releases about one dataset, by all runs of all federations that have trained on it on this machine.

A server names its runs, and could begin a new one whenever a budget is spent. So a client's own budget does not apply
to single runs. Beside the run's ledger (`fedpeft.privacy.client_protection`), every charge is written to a file for the
dataset, whoever the server is. The path identifies the dataset: a copy under another name is another dataset.

    account 0    examples: every release
    account 1    whole clients: releases that hide all of a client's data, and so each of its examples as well

A charge is written here first, so a kill between the two files can only make this one overstate the spending. If this
file is lost, the charges in a run's ledger are copied back when the run is opened.
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
"""How long to wait, in seconds, for another client of this machine that writes its own charge."""

ACCOUNTS = {"training row": (0,), "client": (0, 1)}
"""The accounts that a release is charged to, by the privacy unit of its mechanism."""


class LifetimeLedger:
    """The ledger of one dataset.

    Args:
        folder: folder of all such ledgers.
        data: the file with the examples.
        unit: the privacy unit of the run's mechanism.
        budget: the largest epsilon over all runs; None: any.

    Raises:
        PrivacyError: the ledger can't be read or written.
    """

    def __init__(self, folder: Path, data: Path, unit: str, budget: float | None) -> None:
        """Hold the path of the ledger, the budget and the accounts of the unit; open nothing."""
        self.data = data.resolve()
        self.path = folder / f"{hashlib.sha256(str(self.data).encode()).hexdigest()[:16]}.jsonl"
        self.budget = budget
        self._accounts = ACCOUNTS[unit]

    @contextmanager
    def _open_ledger(self) -> Iterator[Ledger]:
        """Yield the ledger, read anew, while no other process reads or writes it."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock"), timeout=SECONDS):
                yield Ledger(self.path, {"data": str(self.data)})
        except Timeout:
            raise PrivacyError(
                f"FP7047 another process has held {self.path} for {SECONDS:g} s; end that process"
            ) from None
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            raise PrivacyError(f"FP7045 the privacy ledger {self.path} can't be written: {error}") from error

    def carry(self, run: Ledger, known_noise: bool = False) -> None:
        """Copy the charges of a run's ledger that are missing here; noise that is known counts as none."""
        with self._open_ledger() as book:
            for round_number, fingerprint, releases in run.list_charges():
                if known_noise:
                    releases = [(event._replace(noise=0.0), count) for event, count in releases]
                self._write(book, round_number, fingerprint, releases)

    def charge(self, round_number: int, fingerprint: str, event: Event, count: int, delta: float) -> bool:
        """Write a charge, or return False: it would exceed the budget. A known charge is not written again.

        Args:
            round_number: round of the charge in the run's own ledger.
            fingerprint: fingerprint of the charge in the run's own ledger.
            event: the type of the coming releases.
            count: their number.
            delta: the delta that the budget is stated at.
        """
        with self._open_ledger() as book:
            known = book.attempt(round_number, fingerprint) is not None
            if not known and not self._is_affordable(book, event, count, delta):
                return False
            self._write(book, round_number, fingerprint, [(event, count)])
            return True

    def _write(self, book: Ledger, round_number: int, fingerprint: str, releases: list[tuple[Event, int]]) -> None:
        for event, count in releases:  # one: a client charges a round with one kind of release
            book.charge(round_number, fingerprint, dict.fromkeys(self._accounts, (event, count)))

    def allows(self, event: Event, count: int, delta: float) -> bool:
        """Return whether the budget allows a charge, given the present ledger."""
        with self._open_ledger() as book:
            return self._is_affordable(book, event, count, delta)

    def check(self, event: Event, count: int, delta: float) -> None:
        """Reject a run whose budget does not allow even one round.

        Raises:
            PrivacyError: the budget does not allow this charge.
        """
        if self.budget is None:
            return
        with self._open_ledger() as book:
            if not self._is_affordable(book, event, count, delta):
                spent = max(epsilon(book.spent.get(own, {}), delta) for own in self._accounts)
                raise PrivacyError(
                    f"FP7048 earlier runs on {self.data} have spent {spent:.3g} of epsilon {self.budget:g} at dp_delta "
                    f"{delta:.2g}, and the rest does not allow a single round; stay out, or give a larger "
                    "--max-epsilon if you accept that"
                )

    def _is_affordable(self, book: Ledger, event: Event, count: int, delta: float) -> bool:
        """Return whether every account that the charge is written to stays within the budget.

        A release that hides a client also hides its examples, and other runs may have released more about the examples
        than about the client.
        """
        if self.budget is None:
            return True
        return all(is_within(book.after(own, event, count), delta, self.budget) for own in self._accounts)

    def spent_in(self, book: Ledger, delta: float) -> float:
        """Return epsilon of all runs for the mechanism's own unit."""
        return epsilon(book.spent.get(self._accounts[-1], {}), delta)

    def spent(self, delta: float) -> float:
        """Return epsilon of all runs on these examples so far, at `delta`."""
        with self._open_ledger() as book:
            return self.spent_in(book, delta)

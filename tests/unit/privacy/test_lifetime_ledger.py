"""The book of all runs on one data set."""

from __future__ import annotations

import threading

import pytest

from fedpeft.privacy.accountant import Event, epsilon
from fedpeft.privacy.ledger import Ledger
from fedpeft.privacy.lifetime_ledger import LifetimeLedger
from tests.refusals import refuses

EVENT, DELTA = Event(2.0, 1.0), 1e-3


def limit(releases):
    return epsilon({EVENT: releases}, DELTA) * 1.001


def test_a_charge_is_written_once_and_none_above_the_budget(tmp_path):
    made = LifetimeLedger(tmp_path / "ledgers", tmp_path / "rows.csv", "training row", limit(2))
    assert made.charge(1, "a/0", EVENT, 1, DELTA)
    assert made.charge(1, "a/0", EVENT, 1, DELTA), "a kill came between the two books"
    assert made.charge(1, "b/0", EVENT, 1, DELTA), "another run's first round"
    before = made.path.read_bytes()
    assert not made.charge(2, "c/1", EVENT, 1, DELTA)
    assert made.charge(1, "a/0", EVENT, 1, DELTA), "it is paid for"
    assert made.path.read_bytes() == before
    assert made.spent(DELTA) == pytest.approx(epsilon({EVENT: 2}, DELTA))
    assert made.path.stat().st_mode & 0o077 == 0
    with refuses("FP7048"):
        made.check(EVENT, 1, DELTA)


def test_each_file_of_rows_has_a_book_and_a_link_has_none_of_its_own(tmp_path):
    (tmp_path / "rows.csv").write_text("text\nx\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "rows.csv")
    paths = [LifetimeLedger(tmp_path, tmp_path / name, "client", None).path for name in
             ("rows.csv", "link.csv", "sub/../rows.csv", "other.csv")]  # fmt: skip
    assert paths[0] == paths[1] == paths[2] != paths[3]


def test_what_hides_a_client_hides_its_rows_and_not_the_reverse(tmp_path):
    rows, client = (LifetimeLedger(tmp_path, tmp_path / "rows.csv", unit, None) for unit in ("training row", "client"))
    assert client.charge(1, "a/0", EVENT, 1, DELTA)
    assert rows.charge(1, "b/0", EVENT, 1, DELTA)
    assert rows.spent(DELTA) == pytest.approx(epsilon({EVENT: 2}, DELTA))
    assert client.spent(DELTA) == pytest.approx(epsilon({EVENT: 1}, DELTA))


def test_a_client_s_release_does_not_lift_its_rows_above_the_budget(tmp_path):
    """A budget that the rows have spent is spent, whatever unit the next federation names."""
    rows, client = (
        LifetimeLedger(tmp_path, tmp_path / "rows.csv", unit, limit(2)) for unit in ("training row", "client")
    )
    assert [rows.charge(n, f"a/{n}", EVENT, 1, DELTA) for n in range(3)] == [True, True, False]
    assert not client.charge(1, "b/0", EVENT, 1, DELTA)
    with refuses("FP7048"):
        client.check(EVENT, 1, DELTA)
    assert rows.spent(DELTA) == pytest.approx(epsilon({EVENT: 2}, DELTA))


def test_clients_that_charge_at_once_do_not_overspend(tmp_path):
    """Eight at a time, each with a book of its own open, and room for three."""
    start, allowed = threading.Barrier(8), []

    def one(k):
        made = LifetimeLedger(tmp_path, tmp_path / "rows.csv", "client", limit(3))
        start.wait()
        allowed.append(made.charge(1, f"{k}/0", EVENT, 1, DELTA))

    threads = [threading.Thread(target=one, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(allowed) == [False] * 5 + [True] * 3


def test_a_run_s_charges_are_carried_over_once(tmp_path):
    run = Ledger(tmp_path / "ledger.jsonl", {})
    run.charge(1, "a/0", {0: (EVENT, 2)})
    run.charge(1, "b/2", {0: (EVENT, 3)})
    made = LifetimeLedger(tmp_path, tmp_path / "rows.csv", "training row", None)
    for _ in range(2):
        made.carry(Ledger(tmp_path / "ledger.jsonl", {}))
        assert made.spent(DELTA) == pytest.approx(epsilon({EVENT: 5}, DELTA))

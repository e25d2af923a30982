"""Clients' own states: one file, versions that the server acknowledges, kills and processes that write at once."""

from __future__ import annotations

import os
import stat

import pytest
import torch
from fedpeft.clients.store import FILE, ClientStore

from tests.kept_states import kept
from tests.refusals import refuses


def state(value, size=2):
    return {"e": torch.full((size,), float(value))}


def test_a_state_counts_only_once_it_is_acknowledged(tmp_path):
    store = ClientStore(tmp_path / "clients")
    assert store.load(3, 0) is None
    store.stage(3, 1, state(1))
    assert store.load(3, 0) is None  # the server never recorded round 1: what was staged is discarded
    store.stage(3, 2, state(2))
    assert list(kept(tmp_path / "clients")[3]) == [2]
    store.stage(3, 4, state(4))  # killed after this, before the server recorded it
    found = ClientStore(tmp_path / "clients").load(3, 2)
    assert torch.equal(found["e"], torch.full((2,), 2.0))
    with refuses("FP5009"):
        store.load(3, 5)
    assert store.load(5, 0) is None


def test_what_the_server_has_recorded_stays_until_the_next_is_staged(tmp_path):
    store = ClientStore(tmp_path)
    for round_number in (1, 2, 3):
        store.stage(7, round_number, state(round_number))
    store.stage(8, 1, state(10))
    store.load(7, 2, tidy=False)
    store.stage(7, 4, state(4))
    assert list(kept(tmp_path)[7]) == [1, 2, 3, 4]
    store.load(7, 3)
    store.stage(7, 4, state(5))
    assert list(kept(tmp_path)[7]) == [3, 4]
    assert torch.equal(kept(tmp_path)[7][4]["e"], torch.full((2,), 5.0)), "an earlier attempt is replaced"
    assert list(kept(tmp_path)[8]) == [1], "others keep theirs"


def test_nobody_else_may_read_it(tmp_path):
    before = os.umask(0)
    try:
        ClientStore(tmp_path / "clients").stage(1, 1, state(1))
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "clients").iterdir()}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "clients").stat().st_mode) == 0o700


def test_a_file_that_was_begun_and_no_more_holds_no_state(tmp_path):
    """Killed, or out of disk, between the file and its table: nothing was stored, so nothing is lost."""
    (tmp_path / FILE).touch(0o600)
    store = ClientStore(tmp_path)
    assert store.read_content(0, 0) is None
    store.stage(0, 1, state(1))
    assert torch.equal(store.load(0, 1)["e"], torch.full((2,), 1.0))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ("FP5009", 0, 1)),
        (b"damaged", ("FP5010", 0, FILE)),
        (b"SQLite format 3\0" + bytes(4000), ("FP5010", 0, FILE)),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, content, words):
    ClientStore(tmp_path).stage(0, 1, state(1))
    (tmp_path / FILE).write_bytes(content)
    with refuses(*words):
        ClientStore(tmp_path).load(0, 1)

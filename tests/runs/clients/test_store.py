"""Clients' own states: one file, versions that the server acknowledges, kills and processes that write at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import time
from contextlib import suppress

import torch
from fedpeft.clients.store import ClientStore

from tests.kept_states import kept
from tests.unit.clients.test_store import state


def _write(folder, client, rounds):
    for round_number in range(1, rounds + 1):
        ClientStore(folder).stage(client, round_number, state(round_number, 50_000))


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, client, 5)) for client in range(3)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    found = {client: list(rounds) for client, rounds in kept(tmp_path).items()}
    assert found == {client: [1, 2, 3, 4, 5] for client in range(3)}


def test_a_kill_in_the_middle_leaves_whole_states(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_write, args=(tmp_path, 0, 10_000))
    process.start()
    for _ in range(4000):
        time.sleep(0.005)
        with suppress(sqlite3.OperationalError):  # there is no table yet
            if len(kept(tmp_path).get(0, ())) > 3:
                break
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    found = kept(tmp_path)[0]
    assert list(found) == list(range(1, len(found) + 1))
    assert all(
        torch.equal(each["e"], torch.full((50_000,), float(round_number))) for round_number, each in found.items()
    )
    ClientStore(tmp_path).stage(0, len(found) + 1, state(0))
    assert len(kept(tmp_path)[0]) == len(found) + 1

"""A full disk is one sentence at server and client, and nothing is lost."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from fedpeft.privacy import client_protection
from fedpeft.rounds.progress import Checkpoints
from tests.refusals import has_error, refuses


@contextmanager
def full_disk(room):
    """No file of this process grows beyond `room` bytes: writing more fails, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_at_the_server_ends_the_run_in_one_sentence_and_resume_goes_on(federation, tmp_path, observer):
    whole = federation(rounds=3).run()
    for name in ("server", "edge-0", "edge-1"):
        (tmp_path / name).rename(tmp_path / f"{name}-whole")
    made = federation(rounds=3)
    size = next((tmp_path / "server-whole" / "checkpoint").iterdir()).stat().st_size
    with ExitStack() as disk:
        observer.round_done = lambda result: disk.enter_context(full_disk(size // 2)) if result.round == 1 else None
        with refuses("FP5203", tmp_path / "server" / "checkpoint", "File too large"):
            made.run()
    del observer.round_done
    assert Checkpoints(tmp_path / "server" / "checkpoint").load().round == 1
    again = federation(rounds=3)
    progress = again.run()
    assert progress.round == 3
    assert all(torch.equal(progress.adapter[n], whole.adapter[n]) for n in whole.adapter)


def test_a_full_disk_at_the_client_costs_a_round_and_nothing_else(federation):
    made = federation(codec="ef14 | topk(fraction=0.1) | quantize(bits=4) | rans", rounds=2)
    made.run()
    instruction = next(i for i in made.server.direct.asked if i.client == 0 and i.round == 2)
    good = made.server.direct.reports[made.server.direct.asked.index(instruction)]
    edge = made.server.edges[0]
    with full_disk(1000):
        report = edge.handle(instruction)
    assert has_error(report.error, "FP5001", "0")
    assert "\n" not in report.error
    assert not list((made.folder / "edge-0").rglob("*.partial"))
    assert edge.handle(instruction).payload == good.payload


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_stops_a_private_client_before_anything_leaves_it(federation, monkeypatch):
    made = federation(privacy="local_dp(noise_multiplier=1)", rounds=2)
    made.run()
    instruction = replace(made.server.direct.asked[-1], learning_rate=1e-4)
    edge = made.server.edges[instruction.client]
    ledger = edge.protection.ledger.path.stat().st_size
    with full_disk(ledger):
        report = edge.handle(instruction)
    assert has_error(report.error, "FP7045")
    assert not report.payload
    with full_disk(ledger + 30):  # a part of the charge still fits
        assert has_error(edge.handle(instruction).error, "FP7045")
    assert edge.protection.ledger.path.stat().st_size == ledger, "the next charge would follow half a line"
    with full_disk(ledger + 400):
        report = edge.handle(instruction)
    assert has_error(report.error, "FP5001")
    assert not report.payload
    with monkeypatch.context() as patch:  # an answer is smaller than a state, and no room is left for it alone
        patch.setattr(client_protection, "replace_file", no_room)
        report = edge.handle(instruction)
    assert has_error(report.error, "FP7030")
    assert not report.payload
    assert edge.handle(instruction).payload

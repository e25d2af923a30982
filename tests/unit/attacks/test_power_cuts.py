"""Power cuts: files that are cut at every length, and writes that never reached the disk.

A machine that goes down keeps of each file what was synced, and perhaps more. So what is lost here is chosen at the
worst: everything that was written and not synced is gone, or half of it is.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from fedpeft.communication.messages import Report
from fedpeft.deployment.identity.members import Roster
from fedpeft.errors import RunError
from fedpeft.privacy.accountant import Event
from fedpeft.privacy.client_protection import Answers
from fedpeft.privacy.ledger import Ledger
from fedpeft.reporting.records import Records
from fedpeft.rounds.progress import Checkpoints, RunStore, ServerState
from fedpeft.rounds.traffic import Counters
from tests.attacks.scale import SEED, scaled
from tests.refusals import refuses

TERMS = {"unit": "client", "dp_delta": 1e-3}
EVENT = Event(1.5, 0.25)


def lengths(size: int) -> Iterator[int]:
    """All of them, or at a smaller scale a seeded choice with both ends."""
    chosen = range(size) if scaled(100) == 100 else random.Random(SEED).sample(range(size), min(size, scaled(size)))
    return iter(sorted({0, *chosen, size - 1}))


def progress(round_number: int) -> ServerState:
    """Return the server state after a round, with its records."""
    value = torch.full((3, 5), float(round_number))
    lines = {
        "rounds.jsonl": [{"round": round_number}],
        "clients.jsonl": [{"round": round_number, "client": k} for k in range(2)],
    }
    return ServerState(
        round=round_number, adapter={"a": value}, lines=lines, counters=Counters(uplink_bytes=round_number)
    )


@pytest.mark.long
def test_a_checkpoint_cut_at_every_length_is_one_sentence(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(progress(1))
    [file] = tmp_path.iterdir()
    content = file.read_bytes()
    tried = 0
    for length in lengths(len(content)):
        file.write_bytes(content[:length])
        with refuses("FP5199", file.name):
            checkpoints.load()
        file.write_bytes(content[:length] + bytes(len(content) - length))  # the length came to the disk, the rest not
        if content[length:].strip(b"\0"):
            with pytest.raises(RunError, match=r"^FP(5199|5201) "):  # not its format, or not its checksum
                checkpoints.load()
        tried += 1
    print(f"{tried} lengths of {len(content)}")


@pytest.mark.long
def test_a_ledger_cut_at_every_length_holds_each_whole_charge(tmp_path):
    """A line that is whole counts; one that is not released nothing, and the next is not glued to it."""
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, TERMS)
    for round_number in range(1, 5):
        ledger.charge(round_number, f"round {round_number}", {0: (EVENT, 3), 7: (EVENT, 1)})
    content = path.read_bytes()
    for length in lengths(len(content)):
        path.write_bytes(content[:length])
        whole = max(0, content[:length].count(b"\n") - 1)
        found = Ledger(path, TERMS)
        assert found.releases(0) == 3 * whole
        found.charge(9, "the next", {0: (EVENT, 1)})
        assert Ledger(path, TERMS).releases(0) == 3 * whole + 1


@pytest.mark.long
def test_records_cut_at_every_length_go_on_where_the_checkpoint_says_or_are_refused(tmp_path):
    """Lines of the last round are told again; where earlier ones are lost, a run does not go on without them."""
    store = RunStore.from_records(Records(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    for round_number in range(1, 4):
        store.commit(progress(round_number))
    known = store.checkpoints.load().offsets
    for name in progress(1).lines:
        content = (tmp_path / "run" / name).read_bytes()
        for length in lengths(len(content)):
            shutil.rmtree(tmp_path / "cut", ignore_errors=True)
            shutil.copytree(tmp_path / "run", tmp_path / "cut")
            os.truncate(tmp_path / "cut" / name, length)
            again = RunStore.from_records(Records(tmp_path / "cut"))
            if length < known[name]:
                with refuses("FP5193", name, length, known[name]):
                    again.restore(again.checkpoints.load())
            else:
                again.restore(again.checkpoints.load())
                assert (tmp_path / "cut" / name).read_bytes() == content


# ------------------------------------------------------------------------------------------------ what was never synced


class Disk:
    """Remembers of each file what was synced last, and which names a folder had when it was."""

    def __init__(self) -> None:
        self.safe: dict[int, bytes] = {}  # by inode, what would be there after a power cut
        self.names: dict[Path, dict[str, int]] = {}

    def sync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            self.names[path] = {p.name: p.stat().st_ino for p in path.iterdir() if p.is_file()}
        else:
            self.safe[os.fstat(descriptor).st_ino] = path.read_bytes()

    def cut(self, folder: Path, to: Path, share: float) -> None:
        """Copy what survives of `folder`: synced names, the synced part of files, and a `share` of the rest."""
        for path in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
            there = to / path.relative_to(folder)
            there.mkdir(parents=True, exist_ok=True)
            present = {p.name: p for p in path.iterdir() if p.is_file()}
            for name, inode in self.names.get(path, {}).items():
                safe = self.safe.get(inode, b"")
                if name in present and present[name].stat().st_ino == inode:
                    now = present[name].read_bytes()
                    rest = now[len(safe) :] if now.startswith(safe) else b""
                    safe += rest[: int(share * len(rest))]
                (there / name).write_bytes(safe)


@contextmanager
def a_disk(monkeypatch):
    disk, sync = Disk(), os.fsync

    def synced(descriptor):
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        sync(number)
        disk.sync(number)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", synced)
        yield disk


@pytest.mark.long
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_round_that_was_committed_survives_whatever_was_not_synced(share, tmp_path, monkeypatch):
    """After each commit the machine goes down: the run goes on from that round, with all lines of it and before."""
    run = tmp_path / "run"
    run.mkdir()
    with a_disk(monkeypatch) as disk:
        store = RunStore.from_records(Records(run))
        for round_number in range(1, 1 + scaled(30)):
            store.commit(progress(round_number))
            disk.cut(run, left := tmp_path / f"left {round_number}", share)
            again = RunStore.from_records(Records(left))
            found = again.checkpoints.load()
            assert found is not None
            assert found.round == round_number
            again.restore(found)
            for name, each in (("rounds.jsonl", 1), ("clients.jsonl", 2)):
                lines = [json.loads(line) for line in (left / name).read_text().splitlines()]
                assert [line["round"] for line in lines] == [r for r in range(1, round_number + 1) for _ in range(each)]


@pytest.mark.long
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_charge_that_was_made_survives_whatever_was_not_synced(share, tmp_path, monkeypatch):
    """A ledger may say too much, never too little: it is synced, its name as well, before anything is released."""
    home = tmp_path / "home"
    home.mkdir()
    with a_disk(monkeypatch) as disk:
        ledger = Ledger(home / "ledger.jsonl", TERMS)
        for round_number in range(1, 1 + scaled(100)):
            ledger.charge(round_number, f"round {round_number}", {0: (EVENT, 1)})
            disk.cut(home, left := tmp_path / f"left {round_number}", share)
            assert Ledger(left / "ledger.jsonl", TERMS).releases(0) >= round_number


def test_a_disk_that_loses_what_was_not_synced_loses_it_here(tmp_path, monkeypatch):
    """The harness itself: without a sync nothing is left."""
    with a_disk(monkeypatch) as disk:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "a").write_text("written, not synced")
        disk.cut(tmp_path / "run", tmp_path / "left", 0.0)
        assert not (tmp_path / "left" / "a").exists()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_is_written_whole_is_there_after_a_power_cut(share, tmp_path, monkeypatch):
    """A run's settings, a server's list of clients, a client's last answer: each new one, or the one before it."""
    home = tmp_path / "home"
    home.mkdir()
    with a_disk(monkeypatch) as disk:
        for number in range(1, 4):
            Records(home).write("config.toml", f"rounds = {number}\n")
            roster = Roster(home / "roster.json", 9)
            roster.enter(f"client-{number}", 0, None, number)
            Answers(home / "answer").keep(f"question {number}", Report(0, number, b"payload"))
            disk.cut(home, left := tmp_path / f"left {number}", share)
            assert (left / "config.toml").read_text() == f"rounds = {number}\n"
            assert len(Roster(left / "roster.json", 9).members) == number
            found = Answers(left / "answer").find(f"question {number}")
            assert found is not None
            assert found.round == number

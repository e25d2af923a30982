from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from fedpeft.reporting.records import Records
from fedpeft.rounds.progress import VERSION, Checkpoints, ServerState, _compute_checksum
from fedpeft.rounds.traffic import Counters
from tests.refusals import refuses


def example(round_number: int) -> ServerState:
    value = torch.full((2, 3), float(round_number))
    return ServerState(
        round=round_number, adapter={"a": value}, memory={"m": {"a": -value}}, counters=Counters(uplink_bytes=5)
    )


def test_the_newest_checkpoint_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load() is None
    for round_number in (0, 1, 2):
        checkpoints.save(example(round_number))
    found = checkpoints.load()
    assert found is not None
    assert found.round == 2
    assert torch.equal(found.adapter["a"], torch.full((2, 3), 2.0))
    assert torch.equal(found.memory["m"]["a"], torch.full((2, 3), -2.0))
    assert found.counters == Counters(uplink_bytes=5)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_checkpoint_of_another_version_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(example(1))
    [file] = tmp_path.iterdir()
    with safe_open(file, framework="pt") as saved:
        header = json.dumps(json.loads(saved.metadata()["progress"]) | {"version": VERSION - 1})
        tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118 - not a mapping
    file.write_bytes(save(tensors, {"progress": header, "sha256": _compute_checksum(header, tensors)}))
    with refuses("FP5200", file.name):
        checkpoints.load()


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(example(1))
    (tmp_path / "000003.partial").write_bytes(b"half")
    found = checkpoints.load()
    assert found is not None
    assert found.round == 1


def test_a_damaged_checkpoint_is_one_sentence(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(example(1))
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:40])
    with refuses("FP5199"):
        checkpoints.load()


def test_a_flipped_bit_is_found(tmp_path):
    """In a tensor nothing else would notice it: the run would go on from another state."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(example(1))
    [file] = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with refuses("FP5201"):
        checkpoints.load()


def test_a_rename_is_brought_to_the_disk_with_its_folder(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync

    def note(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    Checkpoints(tmp_path / "checkpoint").save(example(1))
    assert [name.rpartition("/")[2].partition(".")[0] for name in synced] == ["000002", "checkpoint"]


def test_lost_or_damaged_lines_are_one_sentence(tmp_path):
    records = Records(tmp_path)
    records.append("rounds.jsonl", {"round": 1}, {"round": 2})
    offsets = records.get_offsets()
    file = tmp_path / "rounds.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:13])
    with refuses("FP5193"):
        records.cut(offsets)
    assert file.read_bytes() == whole[:13]
    for damaged in (b"\0" * 12 + b"\n", b"[1]\n", b'{"round": 1\n', b"\xff\n"):
        file.write_bytes(whole + damaged)
        with refuses("FP5191", "3"):
            records.read("rounds.jsonl")


def test_lines_after_the_checkpoint_are_cut_off(tmp_path):
    records = Records(tmp_path)
    records.append("rounds.jsonl", {"round": 1})
    offsets = records.get_offsets()
    records.append("rounds.jsonl", {"round": 2, "loss": float("nan")})
    records.append("clients.jsonl", {"client": 1})
    records.cut(offsets)
    assert records.read("rounds.jsonl") == [{"round": 1}]
    assert records.read("clients.jsonl") == []


def test_what_json_lacks_is_null_and_a_torn_line_is_left_out(tmp_path):
    records = Records(tmp_path)
    records.append("rounds.jsonl", {"loss": float("inf"), "n": torch.tensor(3)})
    with open(tmp_path / "rounds.jsonl", "a") as file:
        file.write('{"round": 2, "lo')
    assert records.read("rounds.jsonl") == [{"loss": None, "n": 3}]
    json.loads((tmp_path / "rounds.jsonl").read_text().splitlines()[0])


def test_numbers_per_client_come_back_in_order(tmp_path):
    of_clients = {"rows": {3: 40, 1: 7}, "acknowledged": {3: 2}, "held": {3: 0}, "rejections": {1: 2}}
    file = tmp_path / "000003.safetensors"
    file.write_bytes(replace(example(2), **of_clients).to_bytes())
    with safe_open(file, framework="pt") as saved:
        assert not of_clients.keys() & json.loads(saved.metadata()["progress"]).keys()
    progress = ServerState.read(file)
    assert {name: getattr(progress, name) for name in of_clients} == of_clients
    assert list(progress.rows) == [3, 1]


def test_scores_of_single_examples_are_their_owner_s_alone_in_a_private_run(tmp_path):
    for private, others in ((True, 0), (False, 0o044)):
        Records(tmp_path, private).write_arrays("predictions.npz", correct=np.ones(3))
        assert (tmp_path / "predictions.npz").stat().st_mode & 0o077 & ~others == 0
        assert private is not bool((tmp_path / "predictions.npz").stat().st_mode & 0o044)


def test_lines_that_are_their_owner_s_alone_are_told_so(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    Records(tmp_path, private=True).append("clients.jsonl", {"round": 1})
    monkeypatch.setattr("fedpeft.machine.files.read", denied)  # who runs the tests may read all
    with refuses("FP5189", "clients.jsonl"):
        Records(tmp_path).read("clients.jsonl")


ONE = {"x": torch.ones(2)}


@pytest.mark.parametrize(
    "changed",
    [{"told": ONE}, {"learned": ONE}, {"losses": [1.0]}, {"clip": 2.0}, {"acknowledged": {0: 1}}, {"memory": {}}],
    ids=lambda changed: next(iter(changed)),
)
def test_what_can_change_a_private_round_changes_the_digest(changed):
    """Clients train with what they are told; strategies aggregate by what they learned; precision rules read losses."""
    assert replace(example(1), **changed).compute_digest() != example(1).compute_digest()


@pytest.mark.parametrize(
    "changed",
    [{"rows": {0: 9}}, {"held": {0: 1}}, {"counters": Counters(uplink_bytes=6)}, {"rejections": {0: 1}},
     {"offsets": {"rounds.jsonl": 7}}, {"hooks": {"budget": {"spent": 9.0}}}],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_what_cannot_change_it_gives_no_second_charge(changed):
    assert replace(example(1), **changed).compute_digest() == example(1).compute_digest()

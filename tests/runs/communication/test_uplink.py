"""What stands in front of a codec: memories that clients keep between rounds, and precision that changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedpeft.rounds.rounds import Server
from fedpeft.simulate import main
from tests.kept_states import kept
from tests.refusals import has_error

TINY = ["--dataset", "tiny", "--tokens", "32", "--clients", "4", "--cohort", "2", "--rounds", "4", "--dtype", "fp32",
        "--workers", "1", "--local-work", "steps(count=2, walk=False)", "--head", "zero",
        "--peft", "lora(rank=4, layers=1)",
        "--optimizer", "adamw", "--learning-rate", "0.003", "--safeguard", "none", "--measure",
        "validation(keep=last)"]  # fmt: skip
SPARSE = "topk(fraction=0.05) | sign | rans"


def run(folder: Path, *more: str) -> dict:
    assert main([*TINY, "--output", str(folder), *more]) == 0
    return json.loads((folder / "summary.json").read_text())


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors") | load_file(folder / "adapter/head.safetensors")


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_slow_links_send_less(tmp_path):
    profiles = tmp_path / "profiles.toml"
    profiles.write_text("[[profile]]\ncount = 2\nlink = 0.2\n[[profile]]\ncount = 2\n")
    run(tmp_path / "run", "--codec", "by_link | adaptive(bits=2.0) | rans", "--clients", str(profiles),
        "--cohort", "all", "--rounds", "1")  # fmt: skip
    sent = {line["client"]: line["uplink_bytes"] for line in lines(tmp_path / "run", "clients.jsonl")}
    assert max(sent[0], sent[1]) < 0.5 * min(sent[2], sent[3])


# -------------------------------------------------------------------------------------------------- memories in a run


def test_what_a_run_drops_is_remembered_and_sent_later(tmp_path):
    """With a lossless codec around it, the same run would leave zeros; without memory, nothing."""
    run(tmp_path / "with", "--codec", f"ef14 | {SPARSE}")
    run(tmp_path / "without", "--codec", SPARSE)
    assert not (tmp_path / "without" / "clients").exists()
    took_part = {line["client"] for line in lines(tmp_path / "with", "clients.jsonl")}
    memories = kept(tmp_path / "with" / "clients")
    assert memories.keys() == took_part
    for states in memories.values():
        newest = states[max(states)]
        assert any(bool(t.any()) for name, t in newest.items() if name.startswith("feedback/"))
    one, other = adapter(tmp_path / "with"), adapter(tmp_path / "without")
    assert not all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("kind", ["ef14", "ef21"])
def test_a_run_that_dies_between_its_clients_memories_and_its_record_of_them_ends_the_same(tmp_path, kind, monkeypatch):
    """The worst moment: every client of the round has staged a memory that the server never acknowledges."""
    codec = ("--codec", f"{kind} | {SPARSE}")
    run(tmp_path / "whole", *codec)
    commit = Server.commit

    def dies(self, progress):
        if progress.round == 3:
            raise KeyboardInterrupt
        commit(self, progress)

    monkeypatch.setattr(Server, "commit", dies)
    assert main([*TINY, "--output", str(tmp_path / "cut"), *codec]) == 130
    monkeypatch.setattr(Server, "commit", commit)
    assert main(["--resume", str(tmp_path / "cut")]) == 0
    one, other = adapter(tmp_path / "whole"), adapter(tmp_path / "cut")
    assert all(torch.equal(one[n], other[n]) for n in one)
    sent = [[(x["client"], x["uplink_bytes"]) for x in lines(tmp_path / f, "clients.jsonl")] for f in ("whole", "cut")]
    assert sent[0] == sent[1]


def test_statistics_before_round_1_are_encoded_too_and_counted(tmp_path):
    exact, short = (run(tmp_path / c, "--codec", c, "--head", "ridge", "--rounds", "1") for c in ("fp32", "small"))
    assert 0 < short["prepare_bytes"] < 0.5 * exact["prepare_bytes"]
    assert short["uplink_bytes"] > short["prepare_bytes"]


def test_a_memory_is_refused_where_factors_are_made_anew(tmp_path, capsys):
    assert main([*TINY, "--output", str(tmp_path / "a"), "--codec", "ef14 | small", "--strategy", "flexlora"]) == 2
    assert has_error(capsys.readouterr().err, "FP1338")
    run(tmp_path / "b", "--codec", "small", "--downlink", "fp32", "--strategy", "flexlora", "--rounds", "1")
    assert not (tmp_path / "b" / "clients").exists()

"""What is sent down: versions of the state, differences between them, and what it costs to come back after a while."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedpeft.rounds.rounds import Server
from fedpeft.simulate import main

TINY = ["--dataset", "tiny", "--tokens", "32", "--clients", "6", "--cohort", "3", "--rounds", "4", "--dtype", "fp32",
        "--workers", "1", "--local-work", "steps(2)", "--head", "zero", "--peft", "lora(rank=4, layers=1)",
        "--optimizer", "adamw", "--learning-rate", "0.003"]  # fmt: skip


def run(folder: Path, *more: str) -> dict:
    assert main([*TINY, "--output", str(folder), *more]) == 0
    return json.loads((folder / "summary.json").read_text())


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors") | load_file(folder / "adapter/head.safetensors")


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]


def test_tiny_spends_less_on_statistics_also_behind_rules(tmp_path):
    sent = {
        codec: run(tmp_path / str(i), "--codec", codec, "--rounds", "1", "--head", "ridge")["prepare_bytes"]
        for i, codec in enumerate(("small", "tiny", "by_rows | tiny"))
    }
    assert sent["tiny"] == sent["by_rows | tiny"] < 0.6 * sent["small"]


def test_a_lossless_downlink_is_the_same_run_as_ever(tmp_path):
    run(tmp_path / "auto")
    run(tmp_path / "zstd", "--downlink", "cast | zstd")
    one, other = adapter(tmp_path / "auto"), adapter(tmp_path / "zstd")
    assert all(torch.equal(one[n], other[n]) for n in one)
    assert {line["downlink_from"] for line in lines(tmp_path / "auto")} == {None}


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("--strategy", "fedsa_lora"),
        ("--strategy", "fedsa_lora", "--codec", "ef14 | small"),
        ("--strategy", "flexlora", "--ranks", "2*3,4*3"),
        ("--strategy", "hetlora(decay=0.5)"),
        ("--strategy", "flora"),
        ("--strategy", "fedex_lora", "--codec", "ef14 | tiny"),
        ("--drift", "scaffold", "--optimizer", "sgd"),
        ("--downlink", "unbiased"),
        ("--dtype", "fp64"),
        ("--peft", "ia3(layers=1)"),
    ],
)
def test_versions_go_together_with(more, tmp_path):
    run(tmp_path / "run", "--codec", "small", *more)
    sent = lines(tmp_path / "run")
    assert not any("rejected" in line for line in sent)
    last: dict[int, int] = {}
    for line in sent:
        assert line["downlink_from"] in (0, last.get(line["client"], 0))
        last[line["client"]] = line["round"]


def test_who_was_there_pays_less(tmp_path):
    """Everybody takes part in every round: the last step of the chain is smaller than the way from the start."""
    run(tmp_path / "run", "--downlink", "grid(step=0.001) | rans", "--cohort", "all", "--local-work", "steps(8)")
    third, fourth = ([x for x in lines(tmp_path / "run") if x["round"] == round_number] for round_number in (3, 4))
    assert {line["downlink_from"] for line in third} == {2}
    assert {line["downlink_from"] for line in fourth} == {3}


def test_a_run_that_dies_before_it_records_a_version_ends_the_same(tmp_path, monkeypatch):
    run(tmp_path / "whole", "--codec", "tiny")
    commit = Server.commit

    def dies(self, progress):
        if progress.round == 3:
            raise KeyboardInterrupt
        commit(self, progress)

    monkeypatch.setattr(Server, "commit", dies)
    assert main([*TINY, "--output", str(tmp_path / "cut"), "--codec", "tiny"]) == 130
    monkeypatch.setattr(Server, "commit", commit)
    assert main(["--resume", str(tmp_path / "cut")]) == 0
    one, other = adapter(tmp_path / "whole"), adapter(tmp_path / "cut")
    assert all(torch.equal(one[n], other[n]) for n in one)
    keep = ("round", "client", "uplink_bytes", "downlink_bytes", "downlink_from")
    assert [{k: x[k] for k in keep} for x in lines(tmp_path / "whole")] == [
        {k: x[k] for k in keep} for x in lines(tmp_path / "cut")
    ]

"""Runs over tasks one after the other: what clients train on, what is measured, and what a kill in between costs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedpeft.reporting.task_measures import compute_transfer
from fedpeft.rounds.rounds import Server
from fedpeft.simulate import main
from tests.unit.simulation.test_tasks import TINY


def flags(folder: Path, **given: object) -> list[str]:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, **given}.items()]
    return [*words, "--output", str(folder)]


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def killed_in(folder: Path, round_number: int, monkeypatch: pytest.MonkeyPatch, **given: object) -> None:
    """Run a simulation that dies before it records a round, and continue it to its end."""
    commit = Server.commit

    def dies(self, progress):
        if progress.round == round_number:
            raise KeyboardInterrupt
        commit(self, progress)

    monkeypatch.setattr(Server, "commit", dies)
    assert main(flags(folder, **given)) == 130
    monkeypatch.setattr(Server, "commit", commit)
    assert main(["--resume", str(folder)]) == 0


@pytest.mark.parametrize(
    ("given", "rounds"),
    [
        ({"strategy": "inf_lora"}, (3, 4)),  # where the second task begins, and in the middle of it
        ({"strategy": "prototypes", "head": "auto"}, (5,)),
        ({"strategy": "lorm", "codec": "fp32"}, (4,)),
        ({"privacy": "user_dp(epsilon=50, test_noise=True)", "strategy": "fedit"}, (4,)),
    ],
)
@pytest.mark.slow
def test_a_run_that_dies_in_the_middle_of_a_task_ends_the_same(given, rounds, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    assert main(flags(whole, **given)) == 0
    for round_number in rounds:
        cut = tmp_path / f"cut {round_number}"
        killed_in(cut, round_number, monkeypatch, **given)
        one, other = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (whole, cut))
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert lines(whole, "tasks.jsonl") == lines(cut, "tasks.jsonl")
        summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, cut)]
        for key in ("tasks", "uplink_bytes", "downlink_bytes", "prepare_bytes", "epsilon"):
            assert summaries[0][key] == summaries[1][key], key


@pytest.mark.slow
def test_what_a_run_says_of_its_tasks(tmp_path):
    run = tmp_path / "run"
    assert main(flags(run, strategy="o_lora")) == 0
    summary, told = json.loads((run / "summary.json").read_text()), lines(run, "tasks.jsonl")
    assert [line["round"] for line in told] == [0, 2, 4, 6]
    assert [line["task"] for line in told] == [None, 0, 1, 2]
    tasks = summary["tasks"]
    assert tasks["names"] == ["class 0, class 1", "class 2, class 3", "class 4, class 5"]
    for kind in ("accuracy", "accuracy_known_task"):
        matrix = [line[kind] for line in told[1:]]
        assert tasks[kind]["matrix"] == matrix
        assert {k: tasks[kind][k] for k in ("average", "forgetting")} == {
            k: v for k, v in compute_transfer(matrix, told[0][kind]).items() if k in ("average", "forgetting")
        }
    assert all(a <= b for a, b in zip(told[-1]["accuracy"], told[-1]["accuracy_known_task"], strict=True))
    assert np.isclose(np.mean(tasks["test_accuracy"]), summary["accuracy"], atol=0.02), "tasks are of nearly equal size"
    assert (run / "tasks.svg").read_text().startswith("<?xml")
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert adapter["r"] == 6, "two ranks for each task"
    assert adapter["lora_alpha"] == 3 * 32
    assert summary["kept_round"] == 6, "the last state is the result"
    assert "o_lora(tasks=3, every=2, late=1)" in (run / "config.toml").read_text()

"""What a client chooses for its machine, by given memory."""

from __future__ import annotations

import itertools
import os

import pytest

from fedpeft.deployment.capacity import ModelSize, choose
from fedpeft.machine.hardware import (
    accelerators,
    container_cores,
    container_room,
    free_memory,
    gpu_shares,
    usable_cores,
)
from fedpeft.models.base_model import resolve_model
from fedpeft.models.layers import linear_layers
from fedpeft.models.task import DTYPES, TASKS

SEVEN_B = ModelSize(linear=6_500_000_000, other=300_000_000, hidden=4096, intermediate=11008, blocks=32, heads=32,
                    vocabulary=32000)  # fmt: skip
GB = 1e9


def chosen(free, dtype="bf16", batch=8, few=("int8", "nf4"), language=True):
    choice = choose(SEVEN_B, free * GB, dtype, batch, 512, language, few)
    return choice.precision, choice.batch_size, choice.fits


def test_the_runs_own_settings_stay_where_they_fit():
    assert chosen(100) == ("", 8, True)
    assert chosen(120, dtype="fp32") == ("", 8, True)


def test_fewer_rows_then_fewer_bits():
    """The estimate for 7 B parameters in bf16: 13.6 GB to load, 4.8 GB a row of 512 tokens."""
    assert chosen(40) == ("", 4, True)
    assert chosen(28) == ("", 2, True)
    assert chosen(22) == ("int8", 2, True)
    assert chosen(16) == ("nf4", 2, True)
    assert chosen(16, few=()) == ("", 1, False)


def test_what_can_not_even_be_loaded_does_not_fit():
    """Weights pass through memory in the run's precision before they are quantized."""
    assert chosen(10) == ("nf4", 1, False)
    assert chosen(10, few=()) == ("", 1, False)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8, 100])
def test_less_memory_never_means_more_rows(batch):
    order = ["", "int8", "nf4"]
    ladder = [chosen(free, batch=batch) for free in range(8, 400, 4)]
    ranks = [(order.index(precision), -rows) for precision, rows, fits in ladder if fits]
    assert all(less >= more for less, more in itertools.pairwise(ranks))
    assert all(1 <= rows <= batch for _, rows, _ in ladder)


def test_the_size_is_read_off_the_files():
    folder = resolve_model("tiny")
    size = ModelSize.of(folder)
    base = TASKS.build("classification").base(folder, DTYPES["fp32"])
    assert size.linear + size.other >= sum(p.numel() for p in base.parameters())
    assert size.linear == sum(layer.weight.numel() for layer in linear_layers(base).values())
    assert size.blocks == base.config.num_hidden_layers


def test_a_container_s_limit_counts(tmp_path):
    assert container_room(tmp_path) > 1 << 60
    for name, text in (("memory.max", "max"), ("memory.current", "300"), ("memory.stat", "anon 5\ninactive_file 100")):
        (tmp_path / name).write_text(text + "\n")
    assert container_room(tmp_path) > 1 << 60
    (tmp_path / "memory.max").write_text("1000\n")
    assert container_room(tmp_path) == 800
    assert 0 < free_memory("cpu") < 1 << 60


def test_a_container_s_cores_count(tmp_path):
    assert container_cores(tmp_path) > 1 << 20
    for text, cores in (("max 100000", 1 << 30), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1)):
        (tmp_path / "cpu.max").write_text(text + "\n")
        assert container_cores(tmp_path) == cores
    assert 1 <= usable_cores() <= os.cpu_count()


def test_a_gpu_that_torch_can_not_use_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)  # what a driver too old for torch leaves
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert accelerators() == []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert accelerators() == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    ("visible", "count", "jobs", "shares"),
    [
        (None, 0, 4, []),
        (None, 4, 4, ["0", "1", "2", "3"]),
        (None, 4, 2, ["0,1", "2,3"]),
        (None, 2, 5, ["0", "1"]),
        ("5,7", 2, 2, ["5", "7"]),
        ("GPU-a,GPU-b", 2, 1, ["GPU-a,GPU-b"]),
    ],
)
def test_processes_share_the_gpus_that_may_be_used(visible, count, jobs, shares, monkeypatch):
    monkeypatch.setattr("fedpeft.machine.hardware.accelerators", lambda: [f"cuda:{i}" for i in range(count)])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_shares(jobs) == shares

"""What a machine has, by what its files say."""

from __future__ import annotations

import os

import pytest

from fedpeft.machine.cores import count_allowed_threads, count_container_cores, count_usable_cores
from fedpeft.machine.hardware import divide_gpus, get_container_memory, get_free_memory, list_accelerators
from fedpeft.reporting.workers import Machine


def test_a_container_s_limit_counts(tmp_path):
    assert get_container_memory(tmp_path) > 1 << 60
    for name, text in (("memory.max", "max"), ("memory.current", "300"), ("memory.stat", "anon 5\ninactive_file 100")):
        (tmp_path / name).write_text(text + "\n")
    assert get_container_memory(tmp_path) > 1 << 60
    (tmp_path / "memory.max").write_text("1000\n")
    assert get_container_memory(tmp_path) == 800
    assert 0 < get_free_memory("cpu") < 1 << 60


@pytest.mark.parametrize(
    ("given", "limit", "threads"), [("1", 1, 1), ("2,1", 2, 2), ("8", 8, 4), ("", 0, 4), ("x", 0, 4)]
)
def test_a_run_scores_on_no_more_threads_than_its_user_allows(monkeypatch, given, limit, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert count_allowed_threads() == limit
    assert Machine(("cpu",), 4, "native").threads == threads


def test_a_container_s_cores_count(tmp_path):
    assert count_container_cores(tmp_path) > 1 << 20
    for text, cores in (("max 100000", 1 << 30), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1)):
        (tmp_path / "cpu.max").write_text(text + "\n")
        assert count_container_cores(tmp_path) == cores
    assert 1 <= count_usable_cores() <= os.cpu_count()


def test_a_gpu_that_torch_can_not_use_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)  # what a driver too old for torch leaves
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert list_accelerators() == []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert list_accelerators() == ["cuda:0", "cuda:1"]


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
    monkeypatch.setattr("fedpeft.machine.hardware.list_accelerators", lambda: [f"cuda:{i}" for i in range(count)])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert divide_gpus(jobs) == shares

"""The Ray grid: the same groups and the same bits as the pool of processes, and lost workers' clients run again."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
import torch
from fedpeft.clients.pool import Worker
from safetensors.torch import load_file

from fedpeft.simulate import main
from tests.refusals import has_error, refuses

pytest.importorskip("ray", reason="ray is not installed: pip install 'fedpeft[ray]'")

TINY = ["--dataset", "tiny", "--clients", "6", "--cohort", "4", "--rounds", "2", "--dtype", "fp32",
        "--optimizer", "adamw", "--local-work", "steps(3)", "--workers", "2"]  # fmt: skip


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors") | load_file(folder / "adapter/head.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--privacy", "secure_sum"]], ids=["plain", "secure sums"])
def test_ray_actors_give_the_run_of_the_pool_even_if_one_is_killed(tmp_path, monkeypatch, more):
    import ray
    from fedpeft.clients import ray_pool

    killed = threading.Event()
    original = ray_pool.RayPool._call

    def kill_once(self, name, arguments):
        """Before the first group is trained, one idle actor dies."""
        if name == Worker.handle.__name__ and arguments[0][0].kind == "train" and not killed.is_set():
            killed.set()
            actor = self._idle.get()
            ray.kill(actor)
            self._idle.put(actor)
        return original(self, name, arguments)

    monkeypatch.setattr(ray_pool.RayPool, "_call", kill_once)
    assert main([*TINY, *more, "--output", str(tmp_path / "pool")]) == 0
    try:
        assert main([*TINY, *more, "--grid", "ray", "--output", str(tmp_path / "ray")]) == 0
    finally:
        ray.shutdown()
    assert killed.is_set()
    pool, actors = adapter(tmp_path / "pool"), adapter(tmp_path / "ray")
    assert all(torch.equal(pool[name], actors[name]) for name in pool)


def test_an_address_without_a_cluster_is_one_sentence(tmp_path, capsys):
    words = [*TINY, "--grid", "ray(address='127.0.0.1:1')", "--output", str(tmp_path / "run")]
    assert main(words) == 2
    assert has_error(capsys.readouterr().err, "FP5006", "127.0.0.1:1")


def test_a_full_disk_is_no_missing_cluster(monkeypatch):
    import ray
    from fedpeft.clients.ray_pool import connect

    def full(**_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", full)
    with refuses("FP5005"):
        connect("")

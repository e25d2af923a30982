"""The Ray grid: the same groups and the same bits as the pool of processes, and lost workers' clients run again."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from fedpeft.clients.pool import Worker
from safetensors.torch import load_file

from fedpeft.simulate import main
from tests.unit.clients.test_ray import TINY

pytest.importorskip("ray", reason="ray is not installed: pip install 'fedpeft[ray]'")


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

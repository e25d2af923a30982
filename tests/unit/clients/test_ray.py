"""The Ray grid: the same groups and the same bits as the pool of processes, and lost workers' clients run again."""

from __future__ import annotations

import errno
import os

import pytest

from fedpeft.simulate import main
from tests.refusals import has_error, refuses

pytest.importorskip("ray", reason="ray is not installed: pip install 'fedpeft[ray]'")

TINY = ["--dataset", "tiny", "--clients", "6", "--cohort", "4", "--rounds", "2", "--dtype", "fp32",
        "--optimizer", "adamw", "--local-work", "steps(3)", "--workers", "2"]  # fmt: skip


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

"""The pool of worker processes."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from fedpeft.clients.pool import Pool, Worker, get_result

from fedpeft.api import run_simulation
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.unit.clients.test_pool import TINY


@pytest.mark.slow
def test_workers_start_with_a_plan_larger_than_a_pipe(tmp_path, observer):
    """Labels of many rows travel with it where an attack changes them."""
    simulation = Simulation(RunConfig(**TINY), tmp_path, observer)
    single = simulation.workers.pool
    work = replace(simulation.workers.work, labels=np.zeros(1_000_000, dtype=np.int64))
    pool = Pool(work, single._local.clients.plan, 3, ["cpu"])
    try:
        calls = [pool.submit(Worker.fill, work.data_key, work.depth, []) for _ in range(6)]
        assert [get_result(call) for call in calls] == [0] * 6
    finally:
        pool.close()


@pytest.mark.slow
def test_workers_keep_things_where_the_environment_says_now(tmp_path, monkeypatch):
    """What they are forked from has the environment of the first run."""
    for name in ("first", "second"):
        monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / name))
        run_simulation(**{**TINY, "workers": 2}, rounds=1, output=tmp_path / f"run_{name}", progress=False)
        assert any((tmp_path / name).glob("rows-*"))
        shutil.rmtree(tmp_path / name)
        monkeypatch.delenv("FEDPEFT_CACHE")

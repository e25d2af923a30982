"""The pool of worker processes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fedpeft.clients.pool import Pool, Worker, result

from fedpeft.config import RunConfig
from fedpeft.simulation import Simulation


@pytest.mark.slow
def test_workers_start_with_a_plan_larger_than_a_pipe(tmp_path, observer):
    """Labels of many rows travel with it where an attack changes them."""
    simulation = Simulation(
        RunConfig(dataset="tiny", clients=4, tokens=16, dtype="fp32", workers=1), tmp_path, observer
    )
    single = simulation.pool
    work = replace(simulation.work, labels=np.zeros(1_000_000, dtype=np.int64))
    pool = Pool(work, single._local.clients.plan, 3, ["cpu"])
    try:
        calls = [pool.submit(Worker.fill, work.data_key, work.depth, []) for _ in range(6)]
        assert [result(call) for call in calls] == [0] * 6
    finally:
        pool.close()

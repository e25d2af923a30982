"""The pool of worker processes."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
import torch
from fedpeft.clients.pool import Pool, Worker, result

from fedpeft.config import RunConfig
from fedpeft.errors import RunError
from fedpeft.simulation import Simulation

TINY = {"dataset": "tiny", "clients": 4, "tokens": 16, "dtype": "fp32", "workers": 1}


@pytest.mark.slow
def test_workers_start_with_a_plan_larger_than_a_pipe(tmp_path, observer):
    """Labels of many rows travel with it where an attack changes them."""
    simulation = Simulation(RunConfig(**TINY), tmp_path, observer)
    single = simulation.pool
    work = replace(simulation.work, labels=np.zeros(1_000_000, dtype=np.int64))
    pool = Pool(work, single._local.clients.plan, 3, ["cpu"])
    try:
        calls = [pool.submit(Worker.fill, work.data_key, work.depth, []) for _ in range(6)]
        assert [result(call) for call in calls] == [0] * 6
    finally:
        pool.close()


def test_a_gpu_without_memory_is_one_sentence():
    future = Future()
    future.set_exception(torch.OutOfMemoryError("tried to allocate 2 GiB"))
    with pytest.raises(RunError, match="smaller --batch-size"):
        result(future)


def test_what_frozen_layers_make_of_rows_is_kept_apart_by_device(tmp_path, observer):
    work = Simulation(RunConfig(**TINY), tmp_path, observer).work
    places = [replace(work, device=device) for device in ("cpu", "cuda:0", "cuda:1")]
    folders = [place.store(work.data_key, work.depth).folder for place in places]
    assert folders[0] != folders[1] == folders[2]

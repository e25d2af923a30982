"""The pool of worker processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import cloudpickle
import numpy as np
import psutil
import pytest
import torch
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.local_work import LOCAL_WORK
from fedpeft.clients.pool import Pool, Sent, Worker, result, sent

from fedpeft import plugins
from fedpeft.api import run_simulation
from fedpeft.config import RunConfig
from fedpeft.run.records import Records
from fedpeft.simulation.simulation import Simulation
from tests.refusals import refuses

TINY = {"dataset": "tiny", "clients": 4, "tokens": 16, "dtype": "fp32", "workers": 1}


@pytest.mark.slow
def test_workers_start_with_a_plan_larger_than_a_pipe(tmp_path, observer):
    """Labels of many rows travel with it where an attack changes them."""
    simulation = Simulation(RunConfig(**TINY), tmp_path, observer)
    single = simulation.workers.pool
    work = replace(simulation.workers.work, labels=np.zeros(1_000_000, dtype=np.int64))
    pool = Pool(work, single._local.clients.plan, 3, ["cpu"])
    try:
        calls = [pool.submit(Worker.fill, work.data_key, work.depth, []) for _ in range(6)]
        assert [result(call) for call in calls] == [0] * 6
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


WORK_OF_ONES_OWN = """
from dataclasses import dataclass

from fedpeft.clients.local_work import LocalWork


@dataclass(frozen=True)
class Few(LocalWork):
    steps: int = 2

    def steps_for(self, rows, batch_size):
        return self.steps


parts = {"amounts": {"few": Few}}
"""


@pytest.mark.parametrize("form", ["file", "object"])
def test_another_process_gets_parts_of_ones_own_after_their_plugin(tmp_path, monkeypatch, form):
    """It knows no such module: their classes come from the plugin, by name."""
    monkeypatch.setattr(plugins, "_state", plugins._State(begun=True))
    monkeypatch.setattr(plugins, "_names", {})
    file = tmp_path / "my_work.py"
    file.write_text(WORK_OF_ONES_OWN)
    plugin = plugins.found(str(file))
    parts = plugin.parts if form == "file" else {"amounts": {"few": plugin.parts["amounts"]["few"]}}
    plugin = plugin if form == "file" else plugins.Plugin(plugins.IN_PYTHON, "", parts)
    plugins._state.named.append(plugin)
    training = LocalTraining(work=LOCAL_WORK.build("few(steps=5)"))
    module = type(training.work).__module__
    cloudpickle.register_pickle_by_value(sys.modules[module])  # as of a notebook
    recipe = plugin.recipe
    cloudpickle.unregister_pickle_by_value(sys.modules[module])
    plans = sent(SimpleNamespace(plugins=(recipe,), training=training), None)
    plugins._state.named.clear()
    plugins._names.clear()
    del sys.modules[module]
    told = []
    monkeypatch.setattr(Worker, "__init__", lambda self, work, clients: told.append(work))
    monkeypatch.setattr("fedpeft.clients.pool.replace", lambda work, device: work)
    Sent(*plans, "cpu")
    assert told[0].training.work == LOCAL_WORK.build("few(steps=5)")
    assert told[0].training.work.steps_for(3, 1) == 5


def test_a_gpu_without_memory_is_one_sentence():
    future = Future()
    future.set_exception(torch.OutOfMemoryError("tried to allocate 2 GiB"))
    with refuses("FP5003", "--batch-size"):
        result(future)


def test_what_frozen_layers_make_of_rows_is_kept_apart_by_device(tmp_path, observer):
    work = Simulation(RunConfig(**TINY), tmp_path, observer).workers.work
    places = [replace(work, device=device) for device in ("cpu", "cuda:0", "cuda:1")]
    folders = [place.store(work.data_key, work.depth).folder for place in places]
    assert folders[0] != folders[1] == folders[2]


def alive(group: int) -> list[psutil.Process]:
    """The processes of a process group that have not ended."""
    found = []
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.pid) == group:
                found.append(process)
    return found


@pytest.mark.slow
def test_pressing_ctrl_c_twice_ends_the_run_and_its_workers(tmp_path):
    """The second press finds the workers being ended, in the middle of their training."""
    folder = tmp_path / "run"
    words = ["--" + name.replace("_", "-") + f"={value}" for name, value in {**TINY, "workers": 2}.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedpeft.simulate", *words, "--rounds=100000", f"--output={folder}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it in background jobs
    )
    try:
        deadline = time.monotonic() + 120
        while len(Records(folder).read("rounds.jsonl")) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        for pause in (0.02, 0.0):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(pause)
        shown, _ = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "interrupted; continue with" in shown
        assert "Traceback" not in shown
        while (left := alive(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not left
    finally:
        process.kill()

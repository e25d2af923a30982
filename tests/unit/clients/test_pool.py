"""The pool of worker processes."""

from __future__ import annotations

import sys
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import cloudpickle
import pytest
import torch
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.pool import RemoteWorker, Worker, get_result, pack_plans

from fedpeft.parts import plugins
from fedpeft.parts.families import LOCAL_WORK
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses

TINY = {"dataset": "tiny", "clients": 4, "tokens": 16, "dtype": "fp32", "workers": 1}


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
    monkeypatch.setattr(plugins, "_state", plugins._PluginState(begun=True))
    monkeypatch.setattr(plugins, "_names", {})
    file = tmp_path / "my_work.py"
    file.write_text(WORK_OF_ONES_OWN)
    plugin = plugins.find_plugin(str(file))
    parts = plugin.parts if form == "file" else {"amounts": {"few": plugin.parts["amounts"]["few"]}}
    plugin = plugin if form == "file" else plugins.Plugin(plugins.IN_PYTHON, "", parts)
    plugins._state.named.append(plugin)
    training = LocalTraining(work=LOCAL_WORK.build("few(steps=5)"))
    module = type(training.work).__module__
    cloudpickle.register_pickle_by_value(sys.modules[module])  # as of a notebook
    recipe = plugin.recipe
    cloudpickle.unregister_pickle_by_value(sys.modules[module])
    plans = pack_plans(SimpleNamespace(plugins=(recipe,), training=training), None)
    plugins._state.named.clear()
    plugins._names.clear()
    del sys.modules[module]
    told = []
    monkeypatch.setattr(Worker, "__init__", lambda self, work, clients: told.append(work))
    monkeypatch.setattr("fedpeft.clients.pool.replace", lambda work, device: work)
    RemoteWorker(*plans, "cpu")
    assert told[0].training.work == LOCAL_WORK.build("few(steps=5)")
    assert told[0].training.work.steps_for(3, 1) == 5


def test_a_gpu_without_memory_is_one_sentence():
    future = Future()
    future.set_exception(torch.OutOfMemoryError("tried to allocate 2 GiB"))
    with refuses("FP5003", "--batch-size"):
        get_result(future)


def test_what_frozen_layers_make_of_rows_is_kept_apart_by_device(tmp_path, observer):
    work = Simulation(RunConfig(**TINY), tmp_path, observer).workers.work
    places = [replace(work, device=device) for device in ("cpu", "cuda:0", "cuda:1")]
    folders = [place.store(work.data_key, work.depth).folder for place in places]
    assert folders[0] != folders[1] == folders[2]

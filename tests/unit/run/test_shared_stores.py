"""What frozen layers make of rows, where several machines or processes compute it."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from fedpeft.clients.workbench import Workbench

from fedpeft.models.frozen_blocks import ActivationCache
from fedpeft.reporting.workers import Machine, Workers
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses

TINY = {
    "dataset": "tiny(rows=70, test_rows=8)",
    "clients": 4,
    "tokens": 16,
    "dtype": "fp32",
    "workers": 1,
    "peft": "lora(layers=2)",
}


class Elsewhere:
    """Workers of a machine with another cache: what is missing here stays so."""

    def submit(self, *_):
        """Done, somewhere."""
        done = Future()
        done.set_result(2)
        return done


def test_a_cache_that_is_not_shared_is_one_sentence(observer):
    store = SimpleNamespace(find_missing_tiles=lambda: [0, 1])
    work = SimpleNamespace(set_precision=lambda _: SimpleNamespace(store=lambda *_: store))
    workers = Workers(work, None, Machine(("cpu",), 1, "native"), observer)
    workers.__dict__["pool"] = Elsewhere()
    with refuses("FP5195"):
        workers.freeze("rows", 2, "frozen layers")


def test_a_worker_that_is_this_process_tells_how_far_it_is_as_it_goes(observer, monkeypatch):
    missing, told = list(range(20)), []

    class Here:
        def submit(self, _fill, _key, _depth, tiles, _base):
            told.append(f"{len(tiles)} computed")
            for tile in tiles:
                missing.remove(tile)
            done = Future()
            done.set_result(len(tiles))
            return done

    work = SimpleNamespace(
        set_precision=lambda _: SimpleNamespace(store=lambda *_: SimpleNamespace(find_missing_tiles=lambda: missing[:]))
    )
    workers = Workers(work, None, Machine(("cpu",), 1, "native"), observer)
    workers.__dict__["pool"] = Here()
    monkeypatch.setattr(observer, "advance", lambda tiles=1: told.append(f"{tiles} told"))
    workers.freeze("rows", 2, "frozen layers")
    assert told == ["4 computed", "4 told"] * 5


def test_a_worker_computes_what_its_machine_lacks_and_nothing_twice(tmp_path, monkeypatch, observer):
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "cache"))
    work = Simulation(RunConfig(**TINY), tmp_path, observer).workers.work
    bench, filled, fill = Workbench(work), [], ActivationCache.fill

    def note(self, tile, base):
        filled.append(tile)
        fill(self, tile, base)

    monkeypatch.setattr(ActivationCache, "fill", note)
    store = bench.store(work.data_key, work.depth)
    missing = store.find_missing_tiles()
    assert len(missing) > 2
    assert not store.has(1)
    bench.fill(work.data_key, work.depth, [1])
    assert store.has(1)
    bench.fill(work.data_key, work.depth, [0, 1])
    assert filled == [1, 0], "what is there by now is left alone"
    rows = bench.executor.examples  # begins above the frozen blocks, so that it needs all of them
    assert sorted(filled) == missing
    assert store.find_missing_tiles() == []
    hidden = rows.batch([0, len(rows) - 1])["inputs_embeds"]
    assert bool(hidden.abs().sum(-1)[:, 0].all()), "no row is left at zero"
    assert np.isfinite(hidden.numpy()).all()


def test_a_worker_of_a_whole_store_computes_nothing(tmp_path, monkeypatch, observer):
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "cache"))
    work = Simulation(RunConfig(**TINY), tmp_path, observer).workers.work
    first = Workbench(work).fill_store()
    monkeypatch.setattr(ActivationCache, "fill", lambda *_: pytest.fail("it is there"))
    assert Workbench(replace(work)).fill_store().folder == first.folder

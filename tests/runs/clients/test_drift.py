"""Corrections of client drift: each is one file with both halves, and one more needs no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fedpeft.clients import drift
from fedpeft.clients.pool import Worker
from fedpeft.clients.store import ClientStore, select_section
from rich.console import Console

from fedpeft.parts import Family
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.rounds.progress import Checkpoints
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.unit.clients.test_drift import Dynamic

TINY = {"dataset": "tiny", "clients": 3, "cohort": "all", "rounds": 3, "dtype": "fp64", "workers": 1, "tokens": 32,
        "local_work": "steps(2)", "peft": "lora(rank=2, layers=1)",
        "optimizer": "sgd(head_rate=1.0, schedule=constant)", "learning_rate": 0.1, "head": "zero",
        "measure": "validation(every=9)", "drift": "test_drift(alpha=0.2)"}  # fmt: skip


class Extended(Family):
    """The corrections, and one of this file."""

    @property
    def names(self):
        return (*Family(self.package, self.noun).names, "test_drift")

    def part(self, name):
        return Dynamic if name == "test_drift" else super().part(name)


@pytest.fixture
def dynamic(monkeypatch):
    """Register the correction of this file under its name."""
    monkeypatch.setattr(drift, "CORRECTIONS", Extended("fedpeft.clients.corrections", "drift correction"))


class HerePool:
    """A pool whose one worker is this process, which knows the correction of this file."""

    workers = 1

    def __init__(self, work, clients, workers, devices):
        self.worker = Worker(work, clients)

    def submit(self, call, *arguments):
        from concurrent.futures import Future

        done = Future()
        done.set_result(call(self.worker, *arguments))
        return done

    def close(self):
        pass


def trained(folder: Path, **given):
    simulation = Simulation(RunConfig(**TINY | given), folder, ConsoleObserver(Console(quiet=True)))
    folder.mkdir(parents=True, exist_ok=True)
    return simulation, simulation.train(simulation.server(Records(folder)))


@pytest.mark.parametrize("executor", ["sequential", "batched"])
def test_a_third_correction_is_one_file_with_both_halves(executor, dynamic, monkeypatch, tmp_path):
    """Its clients' states persist, its changes travel and are counted, its server's state is in the checkpoint."""
    monkeypatch.setattr("fedpeft.reporting.workers.Pool", HerePool)
    simulation, progress = trained(tmp_path / "run", grid=f"cohort(executor={executor})")
    assert str(simulation.setup.drift) == "test_drift(alpha=0.2)"
    store = ClientStore(tmp_path / "run" / "clients")
    own = [select_section(store.load(client, 3, tidy=False), "drift/test_drift") for client in range(3)]
    server = progress.drift["test_drift"]
    for name, tensor in server.items():
        assert bool(tensor.any())
        assert torch.allclose(tensor, sum(state[name] for state in own) / 3, rtol=1e-9, atol=1e-15)
    loaded = Checkpoints(tmp_path / "run" / "checkpoint").load()
    assert all(torch.equal(loaded.drift["test_drift"][name], tensor) for name, tensor in server.items())
    lines = [json.loads(line) for line in (tmp_path / "run" / "clients.jsonl").read_text().splitlines()]
    sent = {line["uplink_bytes"] for line in lines if line["round"] == 3}  # zeros of round 1 cost less
    assert len(sent) == 1
    assert sent.pop() > 2 * 8 * simulation.setup.layout.numel, "in fp64, update and changes"


def test_without_a_correction_the_result_is_another(dynamic, monkeypatch, tmp_path):
    monkeypatch.setattr("fedpeft.reporting.workers.Pool", HerePool)
    _, one = trained(tmp_path / "with", rounds=2)
    _, other = trained(tmp_path / "without", rounds=2, drift="")
    assert not other.drift
    assert not all(torch.equal(one.adapter[name], tensor) for name, tensor in other.adapter.items())

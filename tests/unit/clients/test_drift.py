"""Corrections of client drift: each is one file with both halves, and one more needs no other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from fedpeft.clients import drift
from fedpeft.clients.drift import Correction, Drift, parse_drift
from fedpeft.clients.executor import Job
from fedpeft.clients.local_optimizer import LOCAL_OPTIMIZERS
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.pool import Worker
from fedpeft.clients.store import ClientStore, section
from rich.console import Console

from fedpeft.aggregation.update import Fold
from fedpeft.communication.codec import parse_codec
from fedpeft.config import RunConfig
from fedpeft.errors import PayloadError
from fedpeft.parts import Family, setting
from fedpeft.run.console import ConsoleObserver
from fedpeft.run.records import Records
from fedpeft.server.progress import Checkpoints
from fedpeft.simulation.simulation import Simulation
from tests.refusals import refuses

TINY = {"dataset": "tiny", "clients": 3, "cohort": "all", "rounds": 3, "dtype": "fp64", "workers": 1, "tokens": 32,
        "local_work": "steps(2)", "peft": "lora(rank=2, layers=1)",
        "optimizer": "sgd(head_rate=1.0, schedule=constant)", "learning_rate": 0.1, "head": "zero",
        "measure": "validation(every=9)", "drift": "test_drift(alpha=0.2)"}  # fmt: skip


@dataclass(frozen=True)
class Dynamic(Correction):
    """As FedDyn's client (Acar et al., arXiv 2111.04263): g <- g - h_k + alpha (y - x), h_k <- h_k - alpha (y - x).

    And a server that knows the mean of all h_k, which it tells: so every way that a correction has is used.
    """

    alpha: float = setting(0.1, "strength", above=0)

    keeps: ClassVar[bool] = True
    travels: ClassVar[bool] = True

    def begin(self, job, server, own):
        def pull(name, value):
            return self.alpha * (value - job.received[name]) - own.get(name, torch.zeros_like(value))

        return pull

    def after(self, job, result, server, own):
        moved = {name: result.state[name] - job.received[name] for name in server}
        return {name: own.get(name, torch.zeros_like(m)) - self.alpha * m for name, m in moved.items()}

    def step(self, server, changes, clients):
        share = changes.weight / clients
        return {name: server[name] + share * change for name, change in changes.mean().items()}


class Extended(Family):
    """The corrections, and one of this file."""

    @property
    def names(self):
        return (*Family(self.package, self.noun).names, "test_drift")

    def part(self, name):
        return Dynamic if name == "test_drift" else super().part(name)


@pytest.fixture
def dynamic(monkeypatch):
    """The correction of this file, known by its name."""
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
    monkeypatch.setattr("fedpeft.run.workers.Pool", HerePool)
    simulation, progress = trained(tmp_path / "run", grid=f"cohort(executor={executor})")
    assert str(simulation.setup.drift) == "test_drift(alpha=0.2)"
    store = ClientStore(tmp_path / "run" / "clients")
    own = [section(store.load(client, 3, tidy=False), "drift/test_drift") for client in range(3)]
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
    monkeypatch.setattr("fedpeft.run.workers.Pool", HerePool)
    _, one = trained(tmp_path / "with", rounds=2)
    _, other = trained(tmp_path / "without", rounds=2, drift="")
    assert not other.drift
    assert not all(torch.equal(one.adapter[name], tensor) for name, tensor in other.adapter.items())


def test_the_text_names_corrections_in_the_order_in_which_they_act():
    text = "fedprox(mu=0.5) + scaffold"
    assert str(parse_drift(text)) == text
    assert parse_drift(str(parse_drift(text))) == parse_drift(text)
    assert parse_drift(" ") == Drift()
    for wrong, words in (
        ("scaffold + scaffold", ("FP1006", "scaffold")),
        ("fedprox + scafold", ("FP1231", "did you mean 'scaffold")),
        ("fedprox(mu=-1)", ("FP1227", "mu")),
        ("fedprox +", ("FP1420",)),
    ):
        with refuses(*words):
            parse_drift(wrong)


def test_what_travels_is_one_payload_and_another_runs_is_refused():
    shapes = {"a": (2, 3), "b": (4,)}
    states = {"scaffold": {name: torch.randn(shape) for name, shape in shapes.items()}}
    codec, both = parse_codec("fp32"), parse_drift("fedprox + scaffold")
    payload = both.encode(states, codec)
    found = both.decode(payload, shapes)
    assert found.keys() == states.keys()
    assert all(torch.equal(found["scaffold"][name], tensor) for name, tensor in states["scaffold"].items())
    assert parse_drift("fedprox").encode({}, codec) == b""
    half = codec.encode({"scaffold/a": states["scaffold"]["a"]}, shapes={f"scaffold/{n}": s for n, s in shapes.items()})
    wrong = (parse_drift("fedprox"), payload), (Drift(), payload), (both, b""), (both, payload[:-1]), (both, half)
    for run, sent in wrong:
        with pytest.raises(PayloadError):
            run.decode(sent, shapes)


def test_fedprox_pulls_back_and_scaffold_pushes_by_the_difference_of_its_variates():
    received = {"x": torch.tensor([1.0, 2.0])}
    job = Job(
        0, 1, 0, np.arange(4), received, frozenset("x"), LocalTraining(optimizer=LOCAL_OPTIMIZERS.build("sgd")), 0.1
    )
    value = torch.tensor([3.0, 0.0])
    prox = parse_drift("fedprox(mu=0.5)").acting({}, {})[0].begin(job)
    assert torch.equal(prox("x", value), torch.tensor([1.0, -1.0]))
    states = {"scaffold": {"x": torch.tensor([5.0, 6.0])}}, {"scaffold": {"x": torch.tensor([1.0, 1.0])}}
    push = parse_drift("scaffold").acting(*states)[0].begin(job)
    assert torch.equal(push("x", value), torch.tensor([4.0, 5.0]))
    assert push("not exchanged", value) is None


def test_scaffolds_server_moves_by_the_share_of_the_clients_that_it_has_heard_of():
    changes = Fold()
    for change in (1.0, 3.0):
        changes.add({"x": torch.tensor([change])}, 1.0)
    after = parse_drift("scaffold").step({"scaffold": {"x": torch.tensor([10.0])}}, {"scaffold": changes}, clients=8)
    assert after["scaffold"]["x"].item() == pytest.approx(10 + (1 + 3) / 8)


def test_states_that_lose_their_meaning_are_refused_whatever_the_correction():
    from fedpeft.aggregation.strategy import strategies

    training = LocalTraining(optimizer=LOCAL_OPTIMIZERS.build("sgd"))
    for text, words in (("fedbuff", ("FP1003",)), ("flexlora", ("FP1004",)), ("fedsvd", ("FP1004",))):
        with refuses(*words):
            Dynamic().check(strategies.build(text), training, [None])
        parse_drift("fedprox").corrections[0].check(strategies.build(text), training, [None])
    with refuses("FP1005"):
        Dynamic().check(strategies.build("fedit"), training, ["one form", "another"])

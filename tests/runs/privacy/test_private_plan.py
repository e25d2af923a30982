"""What a private run does where its user names a budget alone: formulas, by another way of counting, and whole runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedpeft.privacy import mechanism as mechanisms
from fedpeft.privacy.mechanisms import dp_sgd
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.privacy.small_runs import QUIET
from tests.unit.privacy.test_private_plan import TINY, made


@pytest.mark.slow
def test_a_head_is_trained_alone_where_it_is_heard_and_an_adapter_is_not(tmp_path, monkeypatch):
    heard = made(tmp_path / "all", privacy="dp_sgd(epsilon=8, plan=False)", learning_rate=0.01)
    simulation = Simulation(heard, tmp_path / "some", ConsoleObserver(QUIET))
    federation, mechanism = simulation.protection.exposure, simulation.setup.mechanism
    head = sum(t.numel for t in simulation.setup.layout.tensors if t.role == "head")
    alone = replace(federation, trained=(head, head))
    between = (mechanism.training_signal(federation) * mechanism.training_signal(alone)) ** 0.5
    monkeypatch.setattr(mechanisms, "LEAST_SIGNAL", between)
    monkeypatch.setattr(dp_sgd, "LEAST_SIGNAL_HEAD", between)
    given = {**TINY, "peft": "lora", "rounds": 20, "measure": "validation(every=100)"}
    folder = tmp_path / "head"
    planned = Simulation(RunConfig(**given, privacy="dp_sgd(epsilon=8)"), folder, ConsoleObserver(QUIET))
    assert (planned.config.peft, planned.config.strategy) == ("linear_probe", "fedit")
    assert planned.config.server_optimizer == "momentum(beta=0.9)"
    assert planned.protection.trains
    assert planned.protection.exposure.trained == (head, head)
    folder.mkdir()
    progress = planned.train(planned.server(Records(folder)))
    assert progress.round == 20
    moved = {n for n, t in progress.adapter.items() if not torch.equal(t, progress.started[n])}
    assert moved == {"head.weight", "head.bias"}
    assert 7.9 < planned.protection.epsilons()[0] <= 8

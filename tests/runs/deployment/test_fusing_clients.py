"""Finished adapters that real clients combine: each has the runs in folders of its own, known by their digests."""

from __future__ import annotations

import shutil

import pytest

from fedpeft.conformance.peft_cases import create_finished_runs
from fedpeft.models.base_model import resolve_model
from fedpeft.parts.families import TASKS
from tests.here import OfSimulation, make_simulation, run_simulation
from tests.refusals import refuses

CLIENTS = {"dataset": "tiny", "clients": 2, "rounds": 2, "dtype": "fp64"}


@pytest.fixture
def runs():
    return create_finished_runs(resolve_model("tiny"), TASKS.build("classification"), classes=4)


def test_real_clients_fuse_adapters_as_simulated_ones_do(runs, tmp_path, observer):
    given = {**CLIENTS, "peft": f"adapter_fusion(runs=('{runs}/0', '{runs}/1'), width=4)"}
    made = make_simulation(tmp_path / "simulated", **given)
    own = [{"runs": ",".join(str(shutil.copytree(runs / name, tmp_path / f"own-{k}" / f"run-{name}")) for name in "10")}
           for k in range(2)]  # fmt: skip
    real = OfSimulation(tmp_path, observer, made, options=own, **given)
    told = real.server.gateway.description.config
    assert str(runs) not in told
    assert "sha256:" in told
    state = real.run()
    assert [report.error for report in real.server.direct.reports] == [""] * len(real.server.direct.reports)
    simulated, _ = run_simulation(made)
    for name, tensor in simulated.adapter.items():
        assert float((state.adapter[name] - tensor).abs().max()) <= 1e-12, name


def test_a_client_without_the_runs_does_not_join(runs, tmp_path, observer):
    given = {**CLIENTS, "peft": f"adapter_fusion(runs=('{runs}/0', '{runs}/1'), width=4)"}
    made = make_simulation(tmp_path / "simulated", **given)
    made.close()
    with refuses("FP1838", 2, f"{runs}/1"):
        OfSimulation(tmp_path, observer, made, options=[{"runs": f"{runs}/1"}] * 2, **given)


def test_runs_that_nothing_combines_are_refused(tmp_path, observer):
    made = make_simulation(tmp_path / "simulated", **CLIENTS)
    made.close()
    with refuses("FP1839", "runs/a", "--peft"):
        OfSimulation(tmp_path, observer, made, options=[{"runs": "runs/a"}] * 2, **CLIENTS)

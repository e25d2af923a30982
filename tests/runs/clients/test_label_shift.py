"""The correction of label shift: what it makes of one-class clients, of equal ones, and of a client's optimum."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from fedpeft.clients.drift import SHARES

from fedpeft.aggregation.heads.ridge import Ridge
from fedpeft.parts import plugins
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses
from tests.unit.clients.test_label_shift import QUIET, TINY


@dataclass(frozen=True)
class Quiet(Ridge):
    """A head of somebody's own that tells no rows per class."""

    def class_counts(self, total):
        return torch.zeros(0)


@pytest.mark.parametrize("drift", ["auto", "label_shift"])
def test_a_head_that_tells_no_rows_per_class_is_left_as_it_is_or_refused(drift, tmp_path):
    with plugins.use_parts({"heads": {"quiet": Quiet}}):
        simulation = Simulation(RunConfig(**TINY | {"drift": drift, "head": "quiet"}), tmp_path, QUIET)
        server = simulation.server(Records(tmp_path))
        if drift == "auto":
            assert simulation.train(server).told == {}
        else:
            with refuses("FP1406"):
                simulation.train(server)
        simulation.close()


# ------------------------------------------------------------------------------------------------------- whole runs


def test_clients_are_told_the_shares_of_all_rows_and_a_resumed_run_remembers_them(tmp_path, monkeypatch):
    given = {**TINY, "head": "centroids"}
    states = []
    for name, stop in (("whole", None), ("cut", 1)):
        for rounds in ([stop] if stop else []) + [None]:
            simulation = Simulation(RunConfig(**given), tmp_path / name, QUIET)
            (tmp_path / name).mkdir(exist_ok=True)
            server = simulation.server(Records(tmp_path / name))
            monkeypatch.setattr(ConsoleObserver, "round_done", lambda _self, result, last=rounds: result.round == last)
            progress = simulation.train(server)
            simulation.close()
        labels = torch.from_numpy(simulation.rows.train.labels)
        expected = torch.bincount(labels, minlength=simulation.setup.facts.classes) / len(labels)
        assert torch.allclose(progress.told[SHARES], expected.float(), atol=1e-6)
        states.append(progress)
    assert all(torch.equal(states[0].adapter[n], states[1].adapter[n]) for n in states[0].adapter)
    clients = Records(tmp_path / "whole").read("clients.jsonl")
    assert all(line["downlink_bytes"] > 4 * states[0].told[SHARES].numel() for line in clients)


@pytest.mark.parametrize(("partition", "acts"), [("dirichlet(alpha=0.1)", True), ("iid", False)])
def test_by_default_it_acts_where_classes_lie_far_apart_and_changes_nothing_elsewhere(partition, acts, tmp_path):
    made = {}
    for drift in ("auto", "label_shift", ""):
        folder = tmp_path / (drift or "none")
        folder.mkdir()
        given = TINY | {"drift": drift, "partition": partition, "head": "centroids", "clients": 6}
        simulation = Simulation(RunConfig(**given), folder, QUIET)
        made[drift] = simulation.train(simulation.server(Records(folder)))
        simulation.close()
    same, other = ("label_shift", "") if acts else ("", "label_shift")
    assert bool(made["auto"].told) is acts
    assert all(torch.equal(made["auto"].adapter[n], made[same].adapter[n]) for n in made[same].adapter)
    assert any(not torch.equal(made["auto"].adapter[n], made[other].adapter[n]) for n in made[other].adapter)

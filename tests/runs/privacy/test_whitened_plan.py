"""A budget alone under one noise: a head starts from noisy moments, which whiten the features it is trained on."""

import pytest
import torch

from fedpeft.aggregation.whitening import create_projection
from fedpeft.errors import PayloadError
from fedpeft.reporting.records import Records
from fedpeft.rounds import preparation
from tests.unit.privacy.test_whitened_plan import made


def trained(folder, stop=None, **given):
    """Train a run, and return its server state and the simulation."""
    simulation = made(folder, **given)
    folder.mkdir(exist_ok=True)
    stopping = (lambda: False) if stop is None else iter([False] * stop + [True] * 9).__next__
    progress = simulation.train(simulation.server(Records(folder), stopping))
    simulation.close()
    return progress, simulation


def test_it_moves_along_whitened_directions_alone_and_ends_within_its_budget(tmp_path):
    progress, simulation = trained(tmp_path / "run", head="private_ridge(dimensions=16)")
    assert progress.round == 2
    assert progress.told["turn"].shape == (16, 16)
    moved = (progress.adapter["head.weight"] - progress.started["head.weight"]).double()
    assert torch.linalg.matrix_rank(moved) > 0
    projection = create_projection(moved.shape[1], 16)
    outside = moved - moved @ projection.T @ projection
    assert outside.norm() < 1e-5 * moved.norm()  # noise in other directions leads nowhere
    assert 7.9 < simulation.protection.epsilons()[0] <= 8


def test_a_resumed_run_goes_on_with_what_the_start_has_told(tmp_path):
    whole, _ = trained(tmp_path / "whole")
    cut, _ = trained(tmp_path / "cut", stop=1)
    assert cut.round == 1
    resumed, _ = trained(tmp_path / "cut")
    assert resumed.round == 2
    assert {name: t.shape for name, t in resumed.told.items()} == {name: t.shape for name, t in whole.told.items()}
    assert all(torch.equal(resumed.told[name], cut.told[name]) for name in cut.told)


def test_a_server_that_sends_no_whitening_is_refused_by_its_clients(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "_compute_broadcast_tensors", lambda *_: {})
    with pytest.raises(PayloadError):
        trained(tmp_path / "run")

"""What clients are sent of the state that a run keeps where later rounds have put more into the base."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedpeft.communication.base_residual import ResidualFiles, receive
from fedpeft.reporting.observer import Metrics
from fedpeft.rounds.best_state import BestState
from fedpeft.rounds.questions import select_kept_state
from tests.runs.simulation.test_run_strategies import settings, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a run of an exact rule whose first round is its best, and the bases after each round."""
    given = settings("fedex_lora", learning_rate=0.02, rounds=3)
    simulation, _, progress = trained(tmp_path_factory.mktemp("run"), **given)
    bases = [
        {m: sum((s.to_dense() for r, s in steps if r <= round_number), torch.zeros_like(progress.residual.total[m]))
         for m, steps in progress.residual.steps.items()}
        for round_number in range(4)
    ]  # fmt: skip
    return simulation.setup, progress, bases


@pytest.mark.parametrize("kept", [0, 1])
def test_whatever_base_clients_hold_they_get_the_kept_one(run, kept, tmp_path):
    setup, progress, bases = run
    assert progress.residual.total
    assert progress.residual.version == 3
    best = BestState(kept, Metrics(1.0, 0.5), progress.adapter, bases[kept] if kept else {})
    asked = select_kept_state(replace(progress, best=best), ResidualFiles(tmp_path))
    assert asked.residual.version == 4
    codec = setup.lossless
    for held in range(4):
        payload = asked.residual.encode_payload(held, setup.layout.pairs, codec)
        found = receive(bases[held], payload, setup.layout.pairs)
        assert found.keys() == bases[kept].keys()
        assert all(torch.equal(found[module], bases[kept][module]) for module in found)
    assert asked.residual.encode_payload(4, setup.layout.pairs, codec) == b""

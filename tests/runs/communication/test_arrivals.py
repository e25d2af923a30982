"""What clients of one form share of what they are sent alike."""

from __future__ import annotations

import pytest
import torch

from fedpeft.communication import downlink
from fedpeft.communication.downlink import Arrivals
from fedpeft.simulate import main
from tests.runs.communication.test_downlink import TINY


@pytest.mark.parametrize(
    "more",
    [[], ["--grid", "cohort(executor=sequential)"], ["--drift", "scaffold + fedprox(mu=0.1)", "--optimizer", "sgd"],
     ["--privacy", "dp_sgd(noise_multiplier=1)"], ["--attack", "sign_flip"], ["--strategy", "rolora"],
     ["--strategy", "ditto"], ["--codec", "tiny", "--downlink", "fp32"]],
    ids=lambda words: " ".join(words) or "plain",
)  # fmt: skip
def test_nobody_changes_what_others_start_from(more, tmp_path, monkeypatch):
    seen = []

    class Watched(Arrivals):
        def of(self, *asked):
            found = super().of(*asked)
            seen.append((found.state, {name: tensor.clone() for name, tensor in found.state.items()}))
            return found

    monkeypatch.setattr(downlink, "Arrivals", Watched)
    monkeypatch.setattr("fedpeft.clients.broadcast.Arrivals", Watched)
    assert main([*TINY, *more, "--output", str(tmp_path / "run")]) == 0
    assert len(seen) >= 12
    assert any(seen[i][0] is seen[i + 1][0] for i in range(len(seen) - 1))
    for shared, begun in seen:
        assert all(torch.equal(shared[name], begun[name]) for name in begun)

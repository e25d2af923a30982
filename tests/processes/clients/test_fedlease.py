"""FedLEASE: experts chosen at each token, clusters found after a warm-up, and what each client is sent of them."""

from __future__ import annotations

import json

import pytest
import torch
from fedpeft.strategies.fedlease import CLUSTERS

from fedpeft.rounds.progress import Checkpoints
from fedpeft.simulate import main as simulate
from tests.fleet import NAMES


@pytest.mark.slow
def test_real_clients_come_to_the_clusters_of_the_simulation(fleet):
    made = fleet(
        strategy="fedlease(warmup=1, clear=-1)", peft="expert_lora(rank=2, experts=2, layers=1)", rounds=3, head="zero"
    )
    server = made.serve()
    clients = [made.join(name) for name in NAMES]
    assert [made.end(p) for p in (server, *clients)] == [0, 0, 0, 0], made.logs()
    assert simulate([str(made.folder / "run.toml"), "--output", str(made.folder / "simulated")]) == 0
    served, simulated = (Checkpoints(made.folder / f / "checkpoint").load() for f in ("run", "simulated"))
    assert torch.equal(served.learned[CLUSTERS], simulated.learned[CLUSTERS])
    assert len(served.learned[CLUSTERS]) == 3
    for name, tensor in simulated.learned.items():
        assert torch.allclose(served.learned[name], tensor, atol=1e-8), name
    scores = (json.loads((made.folder / f / "summary.json").read_text()) for f in ("run", "simulated"))
    assert len({round(s["loss"], 6) for s in scores}) == 1

"""FedALT: two LoRAs mixed at each token, the mean of the others whoever takes part, and what stays where."""

from __future__ import annotations

import torch
from fedpeft.clients.store import ClientStore, select_section

from tests.runs.simulation.test_run_strategies import settings, trained


def test_a_run_keeps_the_mean_of_all_its_clients(tmp_path):
    given = settings("fedalt", dtype="fp64", rounds=3, peft="row_lora(rank=2, layers=1)")
    simulation, _, progress = trained(tmp_path, **given)
    assert simulation.setup.config.strategy == "fedalt(clients=6)"
    start, kept = simulation.setup.start, {}
    for client, round_number in progress.acknowledged.items():
        kept[client] = select_section(
            ClientStore(tmp_path / "clients").load(client, round_number, tidy=False), "private"
        )
    assert 3 <= len(kept) <= 6
    moved = 0.0
    for name, tensor in progress.adapter.items():
        if ".rest_" in name:
            own = name.replace(".rest_", ".own_")
            mean = sum(kept[client][own] if client in kept else start[own] for client in range(6)) / 6
            assert torch.allclose(tensor, mean, atol=1e-12), name
            moved += float((tensor - start[own]).norm())
            for client in (0, max(kept)):
                alone = kept[client][own] if client in kept else start[own]
                assert torch.allclose(simulation.load_client_state(client)[name], (6 * mean - alone) / 5, atol=1e-12)
        else:
            assert torch.equal(tensor, start[name])
    assert moved > 0.01

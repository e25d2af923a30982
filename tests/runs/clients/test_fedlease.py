"""FedLEASE: experts chosen at each token, clusters found after a warm-up, and what each client is sent of them."""

from __future__ import annotations

import itertools

import torch
from fedpeft.strategies.fedlease import CLUSTERS

from fedpeft.peft.methods.expert_lora import SHUT
from tests.runs.simulation.test_run_strategies import settings, trained


def test_a_run_sends_each_client_its_clusters_expert(tmp_path):
    peft = "expert_lora(rank=2, experts=3, layers=1)"
    given = settings("fedlease(warmup=1, clear=-1)", dtype="fp64", rounds=2, cohort="all", peft=peft)
    simulation, server, progress = trained(tmp_path, **given)
    where, layout = dict(progress.learned[CLUSTERS].tolist()), simulation.setup.layout
    assert set(where) == set(range(6))
    assert 1 <= max(where.values()) <= 2
    sent = {k: simulation.load_client_state(k) for k in where}
    for one, other in itertools.combinations(where, 2):
        same = all(torch.equal(sent[one][n], sent[other][n]) for n in layout.names)
        assert same == (where[one] == where[other])
    opens = {int((t > SHUT / 2)[:3].sum()) for n, t in sent[0].items() if ".bias." in n}
    assert opens == {max(where.values()) + 1}
    assert server.evaluate_own_rows(progress).clients >= 5  # those that hold rows out

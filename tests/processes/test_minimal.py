"""`examples/minimal.py` computes the adapter that a real server and real clients compute."""

from __future__ import annotations

import json

import numpy as np

from fedpeft.models.base_model import resolve_model
from tests.minimal_run import SETTINGS, compute_distance, load_minimal


def test_real_clients_end_with_the_adapter_of_the_plain_loop(fleet):
    names = ("a", "b")
    made = fleet(names=names, **{**SETTINGS, "rounds": 2})
    server = made.serve()
    clients = [made.join(name) for name in names]
    assert [made.end(process) for process in (server, *clients)] == [0, 0, 0], made.logs()

    table = [
        json.loads(line) | {"owner": name}
        for name in names
        for line in (made.folder / f"{name}.jsonl").read_text().splitlines()
    ]
    minimal = load_minimal()
    minimal.ROUNDS = 2
    state, _ = minimal.run(table, np.zeros(len(table), bool), "text", "label", "owner", str(resolve_model("tiny")))
    assert compute_distance(state, made.folder / "run") < 1e-12

"""A user's hook at a server of real clients: it ends the run, adds its section, and goes on after a restart."""

from __future__ import annotations

import json

import pytest

from experiments.checkouts import REPOSITORY
from fedpeft.simulate import main as simulate
from tests.fleet import distance

BUDGET = str(REPOSITORY / "examples" / "budget.py")
NAMES = ("a", "b")


@pytest.mark.slow
def test_a_hook_ends_a_served_run_and_a_resumed_one(fleet):
    made = fleet(names=NAMES, rounds=3, hook="budget(seconds=1e-9)", dtype="fp32")
    summary, seen = made.folder / "run" / "summary.json", []
    for words in (("--plugin", BUDGET), ()):
        server = made.serve(*words)
        clients = [made.join(name) for name in NAMES]
        assert [made.end(p) for p in (server, *clients)] == [0, 0, 0], made.logs()
        seen.append(json.loads(summary.read_text()))
        summary.unlink()
    first, second = seen
    assert first["rounds"] == second["rounds"] == 1
    assert first["hooks"]["budget"]["is_spent"] is True
    assert second["hooks"] == first["hooks"], "the resumed server trains no further round"
    lines = (made.folder / "run" / "hooks.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1]


@pytest.mark.slow
def test_a_traffic_budget_plans_real_clients_as_it_plans_simulated_ones(fleet):
    made = fleet(rounds=3, codec="int8", budget_megabytes=0.9, head="zero")
    server = made.serve("--eval-data", "dataset")
    clients = [made.join(name) for name in ("a", "b", "c")]
    assert [made.end(p) for p in (server, *clients)] == [0, 0, 0, 0], made.logs()
    assert simulate([str(made.folder / "run.toml"), "--output", str(made.folder / "simulated")]) == 0
    real, simulated = (json.loads((made.folder / name / "summary.json").read_text()) for name in ("run", "simulated"))
    assert real["hooks"] == simulated["hooks"]
    section = real["hooks"]["budget_megabytes"]
    assert section["turns_left_out"] + section["rounds_with_fewer_bits"] > 0
    assert section["used_megabytes"] <= section["megabytes"]
    assert distance(made.folder / "run", made.folder / "simulated") < 1e-6

"""A user's hook at a server of real clients: it ends the run, adds its section, and goes on after a restart."""

from __future__ import annotations

import json

import pytest

from experiments.checkouts import REPOSITORY

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

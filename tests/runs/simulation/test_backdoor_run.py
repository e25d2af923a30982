"""A backdoor in whole runs: attackers raise its success, and the records have it beside the accuracy."""

from __future__ import annotations

import json

import pytest

from fedpeft.simulate import main
from tests.runs.simulation.test_run_strategies import TINY, flags


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By the attackers' share: summary and lines of rounds.jsonl."""
    found = {}
    for fraction in (0, 0.34):
        folder = tmp_path_factory.mktemp("backdoor") / "run"
        attack = f"backdoor(fraction={fraction}, share=0.5, target=1, trigger='zz zz zz zz')"
        given = {
            **TINY,
            "peft": "lora(rank=8, layers=0)",
            "attack": attack,
            "cohort": "all",
            "rounds": 6,
            "local_work": "steps(20)",
            "learning_rate": 1e-2,
            "head": "centroids",
            "safeguard": "none",
            "measure": "validation(every=3, keep=last) + backdoor",
        }
        assert main(flags(folder, **given)) == 0
        lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
        found[fraction] = json.loads((folder / "summary.json").read_text()), lines
    return found


def test_attackers_raise_the_success_of_their_trigger(results):
    clean, attacked = (results[fraction][0]["trust"]["backdoor"] for fraction in (0, 0.34))
    assert attacked["success"] > clean["success"] + 0.2
    assert attacked["success"] > attacked["without_trigger"] + 0.1, "it is the trigger, not the class"
    assert clean["rows"] == attacked["rows"] > 0


def test_each_evaluated_round_has_it_beside_the_accuracy(results):
    for _, lines in results.values():
        for line in lines:
            assert (line["trigger_success"] is None) == (line["accuracy"] is None or line["round"] == 0)
    assert results[0.34][1][-1]["trigger_success"] > results[0][1][-1]["trigger_success"]

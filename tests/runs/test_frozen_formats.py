"""Runs of version 0.3.0 go on, and its plugins work (docs/api.md)."""

from __future__ import annotations

import json
import shutil

import pytest

import fedpeft
from tests.unit.test_frozen_formats import FOLDER

ENDS = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sorted(ENDS))
def test_an_interrupted_run_of_0_3_0_ends_as_it_would_have(name, tmp_path):
    folder = tmp_path / name
    shutil.copytree(FOLDER / name, folder)
    run = fedpeft.run_simulation(resume=folder, progress=False)
    expected = ENDS[name]
    assert {key: run.summary[key] for key in expected} == {
        key: pytest.approx(value, rel=1e-6) if isinstance(value, float) else value for key, value in expected.items()
    }
    rounds = [json.loads(line)["round"] for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert rounds == [0, 1, 2, 3]
    assert run.adapter.is_dir()


def test_each_part_of_a_plugin_of_0_3_0_works(tmp_path):
    run = fedpeft.run_simulation(
        dataset="tiny", clients=2, cohort="all", rounds=4, tokens=16, dtype="fp32", workers=1, progress=False,
        local_work="steps(count=1)", peft="lora(rank=2, layers=1)", output=tmp_path / "run",
        plugin=str(FOLDER / "plugin.py"), strategy="half_mean(share=0.25)", codec="cast(dtype=fp32) | flipped",
        hook="last_round(rounds=2)", measure="validation(every=1) + size",
    )  # fmt: skip
    assert run.summary["rounds"] == 2
    assert run.summary["hooks"]["last_round"] == {"counted": 2}
    assert run.summary["trust"]["size"]["test_examples"] > 0

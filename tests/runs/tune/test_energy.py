"""A run uses the energy that was predicted before it trained."""

from __future__ import annotations

import dataclasses

import pytest
from rich.console import Console

from fedpeft import simulate
from fedpeft.reporting.records import Records
from fedpeft.rounds.energy import summarize_energy
from fedpeft.tune.sizes import Sizes
from fedpeft.wiring.config import RunConfig

CONFIG = RunConfig(
    dataset="tiny", model="tiny", clients=4, cohort=2, rounds=2, workers=1, tokens=32, dtype="fp32",
    partition="dirichlet", local_work="epochs(1)",
    measure="energy(watts=6, idle_watts=1, pue=1.2, intensity=300, joule_per_byte=1e-6)",
)  # fmt: skip


@pytest.mark.parametrize(("cohort", "most"), [(2, 1.001), ("cyclic(2, turns=2)", 2.0)])
def test_a_run_uses_what_was_predicted(tmp_path, cohort, most):
    config = dataclasses.replace(CONFIG, cohort=cohort)
    predicted = Sizes(tmp_path).of(config)
    simulate.simulate(config, tmp_path / "run", False, Console(quiet=True), tested=False)
    records = Records(tmp_path / "run")
    used = summarize_energy(records.read("clients.jsonl"), records.read("rounds.jsonl"), 1.2)
    for unit in ("joules", "grams"):
        assert 0.999 * used[unit] <= getattr(predicted, unit) <= most * used[unit]

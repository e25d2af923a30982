"""Clients alone: who they are, what they start from, and that nothing of the others reaches them."""

from __future__ import annotations

import json

import pytest

from fedpeft.simulate import main
from tests.runs.simulation.test_run_strategies import flags, settings


@pytest.mark.parametrize("rule", ["fedit", "fedsa_lora"])
def test_a_run_tells_what_clients_have_alone(rule, tmp_path):
    given = settings(rule, dtype="fp32", rounds=1, measure="validation(every=1) + alone(clients=2)")
    assert main(flags(tmp_path / "run", **given)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 <= summary["alone_accuracy"] <= 1
    assert len(list((tmp_path / "run" / "alone").iterdir())) == 2

"""Plans for a head alone do not depend on the unit of its features."""

from __future__ import annotations

import pytest

from fedpeft.simulate import main as simulate


def test_a_run_of_long_features_has_lower_rates(tmp_path, monkeypatch):
    rates = []
    for number, factor in enumerate((1.0, 10.0)):
        monkeypatch.setattr(
            "fedpeft.wiring.private_plan.measure_feature_length", lambda model, factor=factor: 3.0 * factor
        )
        folder = tmp_path / str(number)
        given = ["--dataset", "tiny", "--model", "tiny", "--peft", "linear_probe", "--clients", "4", "--rounds", "2"]
        given += ["--privacy", "dp_sgd(epsilon=50, start=0.5)", "--dtype", "fp32", "--workers", "1"]
        assert simulate([*given, "--output", str(folder)]) == 0
        said = (folder / "config.toml").read_text()
        rates.append(float(said.split("learning_rate = ")[1].split("\n")[0]))
    assert rates[1] == pytest.approx(rates[0] / 100, rel=0.01)

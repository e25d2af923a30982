"""The audit: its bounds where the truth is known, honest mechanisms, planted faults, membership inference."""

from __future__ import annotations

import json

import pytest

from fedpeft.audit.__main__ import main
from fedpeft.models.quantized_base import QuantizedLinear
from fedpeft.peft import saved_adapter
from fedpeft.simulate import main as simulate


@pytest.mark.slow
def test_a_run_attacks_itself_when_asked_to(tmp_path, capsys):
    words = ["--dataset", "tiny", "--tokens", "32", "--clients", "4", "--cohort", "all", "--rounds", "1", "--workers",
             "1", "--dtype", "fp32", "--head", "zero", "--peft", "lora(rank=2)",
             "--local-work", "steps(2)"]  # fmt: skip
    found = []
    for name, privacy in (("plain", "none(audit=True)"), ("private", "user_dp(epsilon=2, clip=1.0, audit=True)")):
        assert simulate([*words, "--privacy", privacy, "--output", str(tmp_path / name)]) == 0
        found.append(json.loads((tmp_path / name / "summary.json").read_text()))
    plain, protected = found
    assert plain["epsilon"] is None
    assert plain["audit_epsilon"] is None
    assert 0.3 < plain["membership_auc"] <= plain["membership_auc_worst"] < 0.8
    assert protected["audit_passed"]
    assert protected["audit_epsilon"] <= protected["audit_claimed"]
    capsys.readouterr()
    assert main([str(tmp_path / "plain"), str(tmp_path / "private")]) == 0
    assert f"{plain['membership_auc']:.3f}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_on_a_base_in_four_bits_is_attacked_on_that_base(tmp_path, monkeypatch):
    words = ["--dataset", "tiny", "--clients", "4", "--tokens", "16", "--rounds", "1", "--workers", "1"]
    assert simulate([*words, "--dtype", "fp32", "--peft", "qlora", "--output", str(tmp_path / "run")]) == 0
    seen, load = [], saved_adapter.load
    monkeypatch.setattr(saved_adapter, "load", lambda *given: seen.append(given[2]) or load(*given))
    assert main([str(tmp_path / "run")]) == 0
    assert any(isinstance(module, QuantizedLinear) for module in seen[0].modules())

"""Laplace-LoRA from Kronecker factors: against dense matrices, and the exact Gauss-Newton where they are exact."""

import pytest


@pytest.mark.slow
def test_a_run_with_laplace(tmp_path):
    import json

    from fedpeft.simulate import main

    assert main([
        "--dataset", "tiny", "--clients", "5", "--cohort", "2", "--rounds", "2", "--tokens", "16", "--workers", "1",
        "--dtype", "fp32", "--peft", "lora(rank=2, layers=1)", "--output", str(tmp_path / "run"), "--measure",
        "laplace(rows=40)", "--learning-rate", "0.002",
    ]) == 0  # fmt: skip
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["trust"]["laplace"]
    assert found["clients"] == 5
    assert 1e-6 <= found["variance"] <= 1e4
    assert found["laplace"]["rows"] == found["map"]["rows"] == 40
    assert found["laplace"]["loss"] != found["map"]["loss"]

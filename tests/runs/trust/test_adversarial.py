"""Adversarial local steps: how far tokens are moved, what the loss becomes, and where there are none."""

import pytest
import torch
from safetensors.torch import load_file

from fedpeft.simulate import main


@pytest.mark.slow
def test_a_run_is_the_same_however_clients_are_trained(tmp_path):
    made = {}
    for name, more in {
        "plain": [],
        "batched": ["--drift", "adversarial(strength=0.1)"],
        "sequential": ["--drift", "adversarial(strength=0.1)", "--grid", "cohort(executor=sequential)"],
    }.items():
        folder = tmp_path / name
        assert main([
            "--dataset", "tiny", "--clients", "4", "--cohort", "2", "--rounds", "2", "--tokens", "16", "--workers", "1",
            "--dtype", "fp64", "--peft", "lora(rank=2, layers=1)", "--safeguard", "none", "--codec", "cast(dtype=fp64)",
            "--measure", "validation(keep=last)", "--output", str(folder), *more,
        ]) == 0  # fmt: skip
        made[name] = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert any(not torch.equal(made["plain"][name], tensor) for name, tensor in made["batched"].items())
    for name, tensor in made["sequential"].items():
        torch.testing.assert_close(made["batched"][name], tensor, rtol=1e-6, atol=1e-8)

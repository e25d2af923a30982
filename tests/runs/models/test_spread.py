"""A base on several devices: each block where it belongs, and the same training as on one."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from fedpeft.simulate import main
from tests.elsewhere import DEVICE
from tests.unit.models.test_spread import SPEC


@pytest.mark.slow
def test_a_run_on_two_devices_is_the_run_on_one(tmp_path, monkeypatch):
    words = ["--dataset=tiny_lm(owners=4, rows=8)", "--partition=natural", "--clients=0", "--cohort=2", "--rounds=2"]
    words += ["--dtype=fp64", f"--peft={SPEC}"]
    monkeypatch.setattr("torch.inference_mode", torch.no_grad)  # a wrapped tensor can't be made in the former
    grids = {"one": "cohort(executor=sequential)", "two": "cohort(spread=True)"}
    for name, grid in grids.items():
        with monkeypatch.context() as patch:
            devices = [DEVICE, DEVICE.replace("0", "1")] if name == "two" else []
            patch.setattr("fedpeft.reporting.workers.list_accelerators", lambda devices=devices: devices)
            more = ["--grid", grid, "--output", str(tmp_path / name), *(["--workers=1"] if name == "one" else [])]
            assert main([*words, *more]) == 0
    one, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in grids)
    assert all(torch.allclose(one[n], two[n], rtol=1e-5, atol=1e-7) for n in one)

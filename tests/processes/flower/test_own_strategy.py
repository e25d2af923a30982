"""Strategies of Flower's, and a user's own, through the hook: the rules themselves, what is kept, what is refused."""

from __future__ import annotations

import shutil

import pytest
import torch
from flwr.server import strategy as older
from flwr.serverapp import strategy as newer
from safetensors.torch import load_file

import fedpeft
from fedpeft.flower.strategy import wrap_strategy
from tests.unit.flower.test_own_strategy import TINY


@pytest.mark.slow
def test_a_run_with_flowers_fedavg_is_one_with_fedit_and_goes_on_with_its_moments(tmp_path):
    def adapter(name, **given):
        folder = tmp_path / name
        given = given if "resume" in given else {"output": folder, **TINY, **given}
        return load_file(fedpeft.run_simulation(**given).adapter / "adapter_model.safetensors")

    mine = adapter("mine", strategy="fedit", rounds=3, safeguard="none")
    for theirs in (newer.FedAvg, older.FedAvg):
        other = adapter(theirs.__module__, strategy=wrap_strategy(theirs)(), rounds=3, safeguard="none")
        for name, tensor in mine.items():
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-6)

    (tmp_path / "parts.py").write_text(
        "from flwr.serverapp.strategy import FedAdam\n"
        "from fedpeft.flower.strategy import wrap_strategy\n"
        'parts = {"strategies": {"theirs": wrap_strategy(FedAdam)}}\n'
    )
    given = {"plugin": str(tmp_path / "parts.py"), "strategy": "theirs(eta=0.001)", "safeguard": "none", "rounds": 3}
    whole = adapter("whole", **given)
    fedpeft.run_simulation(output=tmp_path / "half", on_round=lambda result: result.round == 1, **TINY, **given)
    shutil.rmtree(tmp_path / "half" / "adapter")
    (tmp_path / "half" / "summary.json").unlink()
    rest = adapter("half", resume=tmp_path / "half")
    assert all(torch.equal(rest[name], tensor) for name, tensor in whole.items())
    assert any(not torch.equal(mine[name], tensor) for name, tensor in whole.items())

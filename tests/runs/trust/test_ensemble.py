"""An ensemble of last states: which are kept, and that their mean is the mean of what each says."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedpeft.rounds.ensemble import STATES, EnsembleHook
from fedpeft.rounds.progress import RunStore, ServerState
from fedpeft.simulate import main
from tests.privacy.small_runs import StopError, trained


@pytest.mark.fast
def test_the_last_states_are_kept_whatever_is_repeated(tmp_path):
    hook = EnsembleHook(tmp_path / STATES, 3)
    for round_number in (0, 1, 2, 3, 2, 3, 4):  # after a kill, rounds 2 and 3 come again
        hook.before_commit(ServerState(round_number, {"x": torch.full((2,), float(round_number))}))
    assert sorted(int(f.stem) for f in (tmp_path / STATES).glob("*")) == [2, 3, 4]


@pytest.mark.parametrize(("owner", "step"), [(EnsembleHook, "before_commit"), (RunStore, "commit")])
def test_a_run_stopped_after_any_step_keeps_all_states(owner, step, tmp_path, monkeypatch):
    whole, given = getattr(owner, step), {"measure": "ensemble(last=2) + validation(keep=last)"}

    def stop(self, progress):
        done = whole(self, progress)
        if progress.round == 2:
            raise StopError
        return done

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, stop)
        with pytest.raises(StopError):
            trained(tmp_path, **given)
    _, progress = trained(tmp_path, **given)
    states = {int(file.stem): load_file(file) for file in (tmp_path / STATES).glob("*")}
    assert sorted(states) == [1, 2]
    assert all(torch.equal(states[2][name], tensor) for name, tensor in progress.adapter.items())


@pytest.mark.slow
def test_the_mean_of_the_last_states(tmp_path):
    folder = tmp_path / "run"
    assert main([
        "--dataset", "tiny", "--clients", "5", "--cohort", "2", "--rounds", "3", "--tokens", "16", "--workers", "1",
        "--dtype", "fp32", "--peft", "lora(rank=2, layers=1)", "--output", str(folder), "--measure",
        "ensemble(last=2) + validation(keep=last)", "--safeguard", "none", "--learning-rate", "0.01",
    ]) == 0  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    found = summary["trust"]["ensemble"]
    assert found["rounds"] == [2, 3]
    assert found["last"]["accuracy"] == pytest.approx(summary["accuracy"], abs=1e-9)
    assert found["last"]["loss"] == pytest.approx(summary["loss"], rel=1e-3)
    assert found["together"]["loss"] != found["last"]["loss"]
    with np.load(folder / "predictions.npz") as scores:
        assert found["together"]["rows"] == len(scores["correct"])

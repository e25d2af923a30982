"""Workers on another device than the CPU: everything is moved there and back, whatever trains."""

from __future__ import annotations

import json

import pytest
import torch
from fedpeft.clients.batched import BatchedExecutor
from safetensors.torch import load_file

from fedpeft.privacy.noise import make_key
from fedpeft.simulate import main
from tests.elsewhere import DEVICE, Elsewhere

TINY = ["--dataset=tiny", "--tokens=16", "--clients=4", "--cohort=3", "--rounds=2", "--workers=1",
        "--local-work=steps(3)",
        "--dtype=fp64", "--learning-rate=0.003", "--optimizer=adamw"]  # fmt: skip
RUNS = {
    "batched": [],
    "sequential": ["--grid=cohort(executor=sequential)"],
    "all blocks": ["--peft=lora(layers=0, rank=4)", "--head=zero"],
    "a residual in the base": ["--strategy=fedex_lora"],
    "corrections": ["--drift=scaffold", "--optimizer=sgd", "--learning-rate=0.05"],
    "a penalty and a bound": ["--drift=fedprox(mu=0.1)", "--optimizer=adamw(max_norm=0.5)"],
    "ranks": ["--ranks=2*2,4*2", "--strategy=flexlora"],
    "language": ["--dataset=tiny_lm", "--partition=iid"],
    "dp_sgd by hooks": ["--privacy=dp_sgd(epsilon=50)", "--head=zero"],
    "dp_sgd by vmap": ["--privacy=dp_sgd(epsilon=50)", "--head=zero", "--peft=ia3"],
    "the pooled data, a second task": ["--measure=pooled + forgetting(dataset=tiny)", "--learning-rate=0.0005"],
}
QUICKER = ("batched", "a residual in the base", "dp_sgd by hooks")


@pytest.mark.fast
def test_devices_are_told_apart():
    there = torch.ones(3).to(DEVICE)
    assert isinstance(there, Elsewhere)
    assert (there + there).cpu().tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match="meets one on"):
        there + torch.ones(3)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow if c in QUICKER else pytest.mark.long) for c in RUNS]
)
def test_a_run_on_another_device_is_the_run_on_the_cpu(case, tmp_path, monkeypatch):
    found = {}
    for device in ("cpu", DEVICE):
        folder = tmp_path / device
        with monkeypatch.context() as patch:
            patch.setattr("fedpeft.reporting.workers.list_accelerators", lambda: [DEVICE] if device == DEVICE else [])  # noqa: B023
            patch.setattr("fedpeft.privacy.engine.make_key", lambda path, _: make_key(path, bytes(32)))
            patch.setattr("torch.inference_mode", torch.no_grad)  # a wrapped tensor can't be made in the former
            patch.setenv("FEDPEFT_CACHE", str(tmp_path / "cache" / device))
            assert main([*TINY, *RUNS[case], "--output", str(folder)]) == 0
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["hardware"]["gpus"] == ([DEVICE] if device == DEVICE else [])
        found[device] = load_file(folder / "adapter" / "adapter_model.safetensors"), summary
    (here, summary), (there, other) = found.values()
    for name, tensor in here.items():
        assert torch.allclose(there[name], tensor, rtol=1e-5, atol=1e-7), name
    assert other["loss"] == pytest.approx(summary["loss"], rel=1e-5)


def test_a_client_trains_elsewhere_on_a_base_in_few_bits(federation, monkeypatch):
    monkeypatch.setattr("torch.inference_mode", torch.no_grad)
    monkeypatch.setattr("fedpeft.deployment.client.capacity.list_accelerators", lambda: [DEVICE])
    where = federation(options=[{"device": DEVICE, "precision": "int8"}, {}])
    seen = []
    train = BatchedExecutor.train

    def kind(executor):
        return next(iter(executor.parameters.values())).device.type

    monkeypatch.setattr(BatchedExecutor, "train", lambda self, jobs: seen.append(kind(self)) or train(self, jobs))
    progress = where.run()
    assert progress.round == 2
    assert set(seen) == {"elsewhere", "cpu"}  # the second client stays at home
    assert not any(report.error for report in where.server.direct.reports)

"""LA-LoRA: factors take turns, gradients are smoothed after the noise, and what it would be wrong with is refused."""

from __future__ import annotations

import pytest
import torch
from fedpeft.clients.corrections.la_lora import smooth_rows
from fedpeft.clients.private import PrivateExecutor
from rich.console import Console

from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig

TINY = {
    "dataset": "tiny",
    "tokens": 32,
    "clients": 4,
    "cohort": "all",
    "rounds": 1,
    "workers": 1,
    "seed": 3,
    "head": "ridge",
    "local_work": "steps(1)",
    "peft": "lora(rank=4, layers=1)",
    "dtype": "fp64",
    "optimizer": "sgd(head_rate=1.0, schedule=constant)",
    "learning_rate": 0.1,
    "measure": "validation(every=9, keep=last)",
    "safeguard": "none",
    "drift": "la_lora",
}


def trained(folder, **given):
    simulation = Simulation(RunConfig(**(TINY | given)), folder, ConsoleObserver(Console(quiet=True)))
    folder.mkdir(parents=True, exist_ok=True)
    return simulation.train(simulation.server(Records(folder)))


def moved(progress):
    return {name: progress.adapter[name] - progress.started[name] for name in progress.adapter}


def test_a_step_of_sgd_moves_one_factor_along_its_smoothed_gradient(tmp_path):
    plain = moved(trained(tmp_path / "plain", drift=""))
    one = moved(trained(tmp_path / "one"))
    rough = moved(trained(tmp_path / "rough", drift="la_lora(smooth=False)"))
    for name, change in one.items():
        if "lora_A" in name:
            assert not change.any()
        elif "lora_B" in name:
            assert change.any()
            assert torch.allclose(change, smooth_rows(plain[name].T).T, atol=1e-12)
            assert torch.allclose(rough[name], plain[name], atol=1e-12)
        else:
            assert torch.allclose(change, plain[name], atol=1e-12)
    two = moved(trained(tmp_path / "two", local_work="steps(2)"))
    for name, change in two.items():
        assert change.any()
        if "lora_B" in name:
            assert torch.allclose(change, one[name], atol=1e-12)


@pytest.mark.parametrize(
    ("optimizer", "rate"), [("sgd(max_norm=0.5)", 0.1), ("adamw(warmup=2)", 3e-3)], ids=["sgd", "adamw"]
)
def test_executors_agree(tmp_path, optimizer, rate):
    """A turned gradient has other strides than its parameter, which the fused AdamW does not look at."""
    given = {"strategy": "flexlora", "ranks": "2*2,4*2", "local_work": "steps(5)", "rounds": 2}
    given |= {"optimizer": optimizer, "learning_rate": rate}
    one, other = (
        trained(tmp_path / executor, grid=f"cohort(executor={executor})", drift="fedprox(mu=0.1) + la_lora", **given)
        for executor in ("batched", "sequential")
    )
    for name, tensor in one.adapter.items():
        assert torch.allclose(tensor, other.adapter[name], rtol=1e-7, atol=1e-9), name


def test_under_dp_sgd_a_step_releases_one_factor_with_smoothed_noise(tmp_path):
    given = {"privacy": "dp_sgd(noise_multiplier=1, test_noise=True)", "local_work": "steps(1)", "head": "zero"}
    change = moved(trained(tmp_path / "private", **given))
    assert all(t.any() != ("lora_A" in name) for name, t in change.items())
    both = moved(trained(tmp_path / "two", **(given | {"local_work": "steps(2)"})))
    assert all(t.any() for t in both.values())
    # noise on one factor, smoothed: neighbours along the features are alike, which those of plain noise are not
    noisy = next(t for name, t in change.items() if "lora_B" in name)
    likeness = float((noisy[1:] * noisy[:-1]).sum() / (noisy * noisy).sum())
    assert likeness > 0.5


def test_what_stands_still_has_no_say_in_the_clipping(tmp_path, monkeypatch):
    """A huge gradient of A, which the first step does not release, leaves that of B as it is."""
    fill = PrivateExecutor._fill

    def with_huge(factor):
        def filled(self, rows, chosen):
            losses = fill(self, rows, chosen)
            for name, parameter in chosen.items():
                if "lora_A" in name:
                    parameter.grad_sample.fill_(factor)
            return losses

        return filled

    given = {"privacy": "dp_sgd(noise_multiplier=1, test_noise=True)", "head": "zero"}
    found = []
    for factor in (0.0, 1e6):
        monkeypatch.setattr(PrivateExecutor, "_fill", with_huge(factor))
        found.append(moved(trained(tmp_path / str(factor), **given)))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])

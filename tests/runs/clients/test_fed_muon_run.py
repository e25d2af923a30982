"""FedMuon in whole runs: both executors, a lossy codec, and the server's mean momentum."""

from __future__ import annotations

import pytest
import torch

from tests.refusals import refuses
from tests.runs.simulation.test_run_strategies import settings, trained

MUON = {"optimizer": "muon", "drift": "fed_muon", "learning_rate": 1e-2}


def test_executors_agree_and_the_mean_momentum_changes_the_result(tmp_path):
    found = {}
    for executor in ("batched", "sequential"):
        grid = f"cohort(executor={executor})"
        *_, found[executor] = trained(
            tmp_path / executor, **settings("fedit", dtype="fp64", rounds=3, grid=grid, **MUON)
        )
    one, other = found["batched"], found["sequential"]
    for name, tensor in one.adapter.items():
        assert torch.allclose(tensor, other.adapter[name], rtol=1e-7, atol=1e-9), name
    momenta = one.drift["fed_muon"]
    assert all(bool(momenta[n].any()) == (not n.startswith("head.")) for n in momenta)
    assert all(torch.allclose(momenta[n], other.drift["fed_muon"][n], rtol=1e-7, atol=1e-9) for n in momenta)
    *_, plain = trained(tmp_path / "plain", **settings("fedit", dtype="fp64", rounds=3, **{**MUON, "drift": ""}))
    assert not all(torch.allclose(plain.adapter[n], one.adapter[n]) for n in plain.adapter)


def test_lossy_updates_leave_momenta_exact(tmp_path):
    """Momenta travel without loss beside updates of few bits, so the first round's are the same."""
    runs = {}
    for codec in ("fp32", "small"):
        *_, runs[codec] = trained(tmp_path / codec, **settings("fedit", rounds=1, codec=codec, **MUON))
    one, other = (run.drift["fed_muon"] for run in runs.values())
    assert all(torch.equal(one[n], other[n]) for n in one)
    assert not all(torch.equal(runs["fp32"].adapter[n], runs["small"].adapter[n]) for n in runs["fp32"].adapter)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"privacy": "secure_sum"}, ("FP7103", "fed_muon")),
        ({"privacy": "dp_sgd(epsilon=8)"}, ("FP7106", "fed_muon")),
        ({"ranks": "2*3,4*3", "strategy": "rbla"}, ("FP1005", "fed_muon")),
        ({"optimizer": "adamw"}, ("FP1523", "fed_muon")),
        ({"peft": "ia3"}, ("FP1339", "fed_muon")),
    ],
)
def test_what_it_does_not_cover_is_refused(given, words, tmp_path):
    with refuses(*words):
        trained(tmp_path, **{**settings("fedit", **MUON), **given})

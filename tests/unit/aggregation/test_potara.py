"""Potara: the share of the global model by brute force, the Fisher information by hand, and the mix."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fedpeft.clients.curvature import compute_fisher_diagonal
from fedpeft.clients.personal import SHARE, compose_model
from fedpeft.clients.store import add_label

from fedpeft.conformance.peft_cases import Case
from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import AdapterShape


def information(scale, seed):
    draws = torch.Generator().manual_seed(seed)
    return {n: scale * torch.rand(*s, generator=draws, dtype=torch.float64) for n, s in (("a", (4, 6)), ("b", (5,)))}


@pytest.mark.parametrize("damping", [0.01, 0.1, 2.0])
@pytest.mark.parametrize("scale", [1e-9, 0.2, 30.0])
def test_the_share_has_the_least_variance_of_all_mixes(scale, damping):
    shared, own = information(1.0, 0), information(scale, 1)
    found = strategies.build(f"potara(damping={damping})").choose_share(shared, own)
    every = torch.cat([t.flatten() for model in (shared, own) for t in model.values()])
    d = damping * float(every.mean())
    of_shared, of_own = (sum(float((1 / (t + d)).sum()) for t in model.values()) for model in (shared, own))
    grid = np.linspace(0, 1, 100_001)
    variances = grid**2 * of_shared + (1 - grid) ** 2 * of_own
    assert found == pytest.approx(grid[variances.argmin()], abs=1e-5)
    assert variances.min() < min(of_shared, of_own), "the mix is better than either model"


def test_the_better_determined_model_counts_more_and_units_do_not():
    rule = strategies.build("potara")
    shared, own = information(1.0, 0), information(5.0, 1)
    share = rule.choose_share(shared, own)
    assert 0 < share < 0.5, "the client's own model has the larger information"
    assert rule.choose_share(own, shared) == pytest.approx(1 - share)
    in_other_units = [{n: 1e6 * t for n, t in model.items()} for model in (shared, own)]
    assert rule.choose_share(*in_other_units) == pytest.approx(share)
    zeros = information(0.0, 0)
    assert rule.choose_share(zeros, zeros) == 0.5


@pytest.mark.parametrize("rank", [4, 2])
def test_the_information_is_the_mean_square_of_each_example_s_gradient(rank, tiny):
    """A plain step at rate 1 on one example alone moves a tensor by its negative gradient."""
    case = Case("lora(rank=4)", tiny)
    forms = [AdapterShape(rank, rank * case.layout.form.scale)] * 3
    [job] = case.jobs(forms=forms, optimizer="sgd(head_rate=1.0, max_norm=0.0)", steps=1, rate=1.0)[:1]
    job = replace(job, rows=job.rows[:5])
    squares = {name: torch.zeros_like(t) for name, t in job.received.items()}
    for row in job.rows:
        [result] = case.sequential.train([replace(job, rows=np.array([row]))])
        for name in squares:
            squares[name] += (result.state[name] - job.received[name]).square() / 5
    found = compute_fisher_diagonal(case.sequential, job, 5)
    assert found.keys() == squares.keys()
    assert all(torch.allclose(found[n], squares[n], rtol=1e-8, atol=1e-14) for n in found)
    some = compute_fisher_diagonal(case.sequential, job, 2)
    again = compute_fisher_diagonal(case.sequential, job, 2)
    assert all(torch.equal(some[n], again[n]) for n in some)
    assert not torch.allclose(some["head.weight"], found["head.weight"])


def test_a_client_uses_the_mix_and_without_a_share_its_own_model():
    shared, own = {"x": torch.tensor([1.0]), "y": torch.tensor([2.0])}, {"x": torch.tensor([5.0])}
    share = {SHARE: torch.tensor([0.25], dtype=torch.float64)}
    assert compose_model(shared, {}) == shared
    assert compose_model(shared, add_label("personal", own))["x"].item() == 5.0
    mixed = compose_model(shared, add_label("personal", own) | share)
    assert (mixed["x"].item(), mixed["y"].item()) == (0.25 * 1 + 0.75 * 5, 2.0)

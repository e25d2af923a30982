"""Muon: its orthogonalization, its steps by hand, and clients of mixed ranks in one pass."""

import pytest
import torch
from fedpeft.clients.optimizers.muon import orthogonalize
from torch import nn

from fedpeft.conformance.peft_cases import Case, find_largest_difference
from fedpeft.parts.families import LOCAL_OPTIMIZERS
from fedpeft.peft.adapter import AdapterShape
from tests.refusals import refuses

GOLDEN = [0.696734161233, 0.7020705398, 0.708652334508]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(4, 30), (30, 4), (3, 4, 30), (8, 8)])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e6])
def test_singular_values_come_near_1_and_vectors_stay(shape, size):
    momentum = size * drawn(*shape)
    found = orthogonalize(momentum)
    values = torch.linalg.svdvals(momentum)
    clear = values > 1e-2 * values.amax(-1, keepdim=True)
    assert ((torch.linalg.svdvals(found) > 0.6).sum(-1) >= clear.sum(-1)).all()
    assert (torch.linalg.svdvals(found) < 1.3).all()
    left, _, right = torch.linalg.svd(momentum, full_matrices=False)
    core = left.mT @ found @ right.mT
    assert torch.allclose(core, torch.diag_embed(core.diagonal(dim1=-2, dim2=-1)), atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 11), (11, 3), (6, 6)])
def test_orthogonalization_is_five_times_the_polynomial_of_the_singular_values(shape):
    """By an SVD: p(s) = 3.4445 s - 4.775 s^3 + 2.0315 s^5, from s over the Frobenius norm."""
    momentum = drawn(*shape)
    left, values, right = torch.linalg.svd(momentum, full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    assert torch.allclose(orthogonalize(momentum), left @ torch.diag(values) @ right, rtol=0, atol=1e-10)


def test_orthogonalized_values_are_the_golden_ones():
    """Of singular values 1, 0.1 and 0.01 in ratio: computed by hand in fp64, with numpy and no matrix."""
    found = torch.linalg.svdvals(orthogonalize(torch.diag(torch.tensor([100.0, 10.0, 1.0], dtype=torch.float64))))
    assert sorted(found.tolist()) == pytest.approx(GOLDEN, rel=1e-9)


def test_ranks_of_zero_stay_zero_and_change_nothing():
    momentum = drawn(3, 20)
    padded = torch.cat([momentum, torch.zeros(2, 20)])
    assert torch.allclose(orthogonalize(padded)[:3], orthogonalize(momentum))
    assert not orthogonalize(padded)[3:].any()
    assert not orthogonalize(torch.zeros(4, 5)).any()


def test_steps_by_hand():
    """Momentum 0.5: M1 = g1, M2 = g1 / 2 + g2; a step of lr 0.2 sqrt(max(m, n)); the head moves as with Adam."""
    factor, head = nn.Parameter(drawn(4, 30)), nn.Parameter(drawn(6, seed=1))
    start, plain = factor.detach().clone(), nn.Parameter(head.detach().clone())
    names = {"x.lora_A.weight": factor, "head.bias": head}
    optimizer, _ = LOCAL_OPTIMIZERS.build("muon(momentum=0.5, head_rate=1.0)").create_optimizer(names, 0.1)
    reference = torch.optim.Adam([plain], lr=0.1)
    gradients = [drawn(4, 30, seed=2), drawn(4, 30, seed=3)]
    for step, g in enumerate(gradients):
        factor.grad, head.grad = g.clone(), drawn(6, seed=4 + step)
        plain.grad = head.grad.clone()
        optimizer.step()
        reference.step()
    size = 0.1 * 0.2 * 30**0.5
    expected = start - size * (orthogonalize(gradients[0]) + orthogonalize(gradients[0] / 2 + gradients[1]))
    assert torch.allclose(factor, expected)
    assert torch.allclose(head, plain, atol=1e-9)


@pytest.mark.parametrize("mixed", [False, True], ids=["equal", "mixed"])
def test_all_clients_in_one_pass_train_as_each_alone(tiny, mixed):
    case = Case("lora(rank=4)", tiny)
    scale = case.layout.form.scale
    forms = [AdapterShape(r, r * scale) for r in (2, 4, 3)] if mixed else None
    jobs = case.jobs(forms=forms, optimizer="muon(head_rate=1.0)", rate=1e-2)
    one = list(case.sequential.train(jobs))
    assert find_largest_difference(one, list(case.create_batched_executor().train(jobs)), jobs) < 1e-8


def test_it_refuses_what_has_no_factors(tiny):
    case = Case("ia3", tiny)
    jobs = case.jobs(optimizer="muon")
    with refuses("FP1515"):
        list(case.sequential.train(jobs))

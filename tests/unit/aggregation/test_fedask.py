"""FedASK against the SVD of the exact mean."""

import pytest
import torch
from fedpeft.strategies.fedask import sketched_svd

from fedpeft.aggregation.factors import compute_effective_weight
from fedpeft.conformance.cohorts import Client, create_random_state
from fedpeft.peft.low_rank import LowRank
from tests.aggregation.one_round import EQUAL, FORM, MIXED, a_round, layout, pair, shares


def exact_mean(updates):
    return sum(
        p * u.scale * u.get_trained(pair.B) @ u.get_trained(pair.A)
        for p, u in zip(shares(updates), updates, strict=True)
    )


def best(matrix, rank):
    left_vectors, singular, right_vectors = torch.linalg.svd(matrix)
    return (left_vectors[:, :rank] * singular[:rank]) @ right_vectors[:rank]


@pytest.mark.parametrize("clients", [EQUAL, MIXED], ids=["equal", "mixed"])
def test_a_sketch_that_spans_the_mean_gives_its_best_approximation(clients):
    result, updates, _ = a_round("fedask(oversampling=20, power=0)", clients)
    found = compute_effective_weight(pair, result.state, FORM).to_dense()
    assert torch.allclose(found, best(exact_mean(updates), FORM.rank), atol=1e-9)


def test_both_factors_carry_the_roots_of_the_singular_values():
    result, updates, _ = a_round("fedask(oversampling=20)", EQUAL)
    singular = torch.linalg.svdvals(exact_mean(updates))[: FORM.rank] / FORM.scale
    lora_a, lora_b = result.state[pair.A], result.state[pair.B]
    assert torch.allclose(lora_a @ lora_a.T, singular.diag(), atol=1e-9)
    assert torch.allclose(lora_b.T @ lora_b, singular.diag(), atol=1e-9)


def test_passes_bring_a_narrow_sketch_to_the_best_approximation():
    errors = []
    for power in (0, 1, 10, 300):
        result, updates, _ = a_round(f"fedask(oversampling=0, power={power})", EQUAL)
        errors.append(
            float((exact_mean(updates) - compute_effective_weight(pair, result.state, FORM).to_dense()).norm())
        )
    least = float((exact_mean(updates) - best(exact_mean(updates), FORM.rank)).norm())
    assert errors[0] > errors[1] > least * (1 - 1e-9)
    assert errors[-1] == pytest.approx(least, rel=1e-6)


def test_the_private_form_loses_nothing_and_moves_both_factors():
    result, updates, state = a_round("fedask(train=B)", EQUAL)
    assert all(pair.A not in u.delta for u in updates)
    assert torch.allclose(compute_effective_weight(pair, result.state, FORM).to_dense(), exact_mean(updates), atol=1e-9)
    assert not torch.allclose(result.state[pair.A], state[pair.A])
    assert not torch.allclose(result.state[pair.B], state[pair.B])


def test_a_rank_without_energy_keeps_its_row_of_a():
    state = create_random_state(layout, 1, torch.float64)
    result, _, _ = a_round("fedask", [Client(type(FORM)(2, 4.0))], state=state)
    assert not result.state[pair.B][:, 2:].any()
    assert torch.equal(result.state[pair.A][2:], state[pair.A][2:])


def test_the_sketch_is_drawn_from_the_seed_and_the_round():
    one, _, _ = a_round("fedask(oversampling=0, power=0)", EQUAL, seed=5)
    again, _, _ = a_round("fedask(oversampling=0, power=0)", EQUAL, seed=5)
    other, _, _ = a_round("fedask(oversampling=0, power=0)", EQUAL, seed=6)
    assert torch.equal(one.state[pair.B], again.state[pair.B])
    assert not torch.allclose(one.state[pair.B], other.state[pair.B])


def test_the_sketched_factors_are_a_projection():
    generator = torch.Generator().manual_seed(0)
    left, right, omega = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((9, 6), (6, 8), (8, 3)))
    left_vectors, singular, right_vectors = sketched_svd(LowRank(left, right), omega, 0)
    basis = torch.linalg.qr(left @ right @ omega).Q
    assert torch.allclose((left_vectors * singular) @ right_vectors, basis @ basis.T @ left @ right)

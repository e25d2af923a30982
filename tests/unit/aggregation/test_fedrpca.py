"""FedRPCA: its decomposition against planted parts and the convex problem, its step against its equation."""

import pytest
import torch
from fedpeft.strategies.fedrpca import decompose, shrink_singular_values

from tests.aggregation.one_round import EQUAL, FORM, MIXED, a_round, pair, shares


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted():
    """Return a matrix of rank 2, and sparse spikes in 5 % of its entries."""
    low = drawn(200, 2, seed=0) @ drawn(2, 30, seed=1)
    spikes = torch.where(drawn(200, 30, seed=2) > 1.645, 10 * drawn(200, 30, seed=3), 0.0)
    return low, spikes


def test_planted_parts_are_found():
    low, spikes = planted()
    found = decompose(low + spikes, 1000)
    assert float((found - low).norm() / low.norm()) < 1e-2


def test_nothing_near_the_decomposition_has_a_smaller_objective():
    matrix = drawn(60, 8, seed=4) + 3 * drawn(60, 1, seed=5)
    low_rank = decompose(matrix, 1000)

    def objective(low):
        return float(torch.linalg.svdvals(low).sum() + (matrix - low).abs().sum() / 60**0.5)

    least = objective(low_rank)
    assert least < min(objective(matrix), objective(torch.zeros_like(matrix))) * 0.99
    for seed in range(20):
        for size in (1e-3, 1e-2, 1e-1, 1.0):
            for direction in (
                drawn(60, 8, seed=seed),
                drawn(60, 1, seed=seed) @ drawn(1, 8, seed=seed),
                low_rank,
                matrix - low_rank,
            ):
                for sign in (1, -1):
                    moved = low_rank + sign * size * direction
                    assert objective(moved) > least - 1e-4 * least


def test_singular_values_are_reduced_as_by_an_svd():
    matrix = drawn(40, 6, seed=6)
    left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    by = float(singular[2])
    assert torch.allclose(shrink_singular_values(matrix, by), (left * (singular - by).clamp_min(0)) @ right, atol=1e-10)


@pytest.mark.parametrize("clients", [EQUAL, MIXED], ids=["equal", "mixed"])
@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_the_step_is_the_mean_of_l_and_beta_times_the_mean_of_s(clients, beta):
    result, updates, state = a_round(f"fedrpca(beta={beta})", clients)
    p = torch.tensor(shares(updates), dtype=torch.float64)
    for name, rows, columns in ((pair.A, 4, 9), (pair.B, 12, 4)):
        unit = [u.scale / FORM.scale if name == pair.B else 1.0 for u in updates]
        deltas = [c * u.delta[name] for c, u in zip(unit, updates, strict=True)]
        deltas = [torch.nn.functional.pad(d, (0, columns - d.shape[1], 0, rows - d.shape[0])) for d in deltas]
        matrix = torch.stack([d.flatten() for d in deltas], dim=1)
        low_rank = decompose(matrix, 200)
        step = (low_rank @ p + beta * (matrix - low_rank) @ p).reshape(rows, columns)
        assert torch.allclose(result.state[name], state[name] + step)


def test_with_beta_1_it_is_fedit():
    one, _, _ = a_round("fedrpca(beta=1.0)", EQUAL)
    other, _, _ = a_round("fedit", EQUAL)
    assert all(torch.allclose(one.state[name], other.state[name]) for name in one.state)


def test_an_adaptive_beta_makes_up_for_the_share_of_the_special_part():
    adaptive, updates, state = a_round("fedrpca(largest=1000.0)", EQUAL)
    p = torch.tensor(shares(updates), dtype=torch.float64)
    matrix = torch.stack([u.delta[pair.A].flatten() for u in updates], dim=1)
    mean, special = matrix @ p, (matrix - decompose(matrix, 200)) @ p
    beta = max(1.0, float(mean.norm() / special.norm()))
    step = (adaptive.state[pair.A] - state[pair.A]).flatten()
    assert torch.allclose(step, mean + (beta - 1) * special)
    capped, _, _ = a_round("fedrpca(largest=1.0)", EQUAL)
    assert torch.allclose((capped.state[pair.A] - state[pair.A]).flatten(), mean)

"""What each rule promises beyond exactness, against its equation written out on dense matrices."""

import sys

import torch
from fedpeft.strategies.florg import FLoRG

from tests.aggregation.one_round import EQUAL
from tests.unit.aggregation.test_strategy_rules import a_gram_round


def orthonormal(matrix):
    """Return the nearest matrix with orthonormal rows."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def test_florg_maximizes_the_inner_product_with_the_last_g_and_not_the_nearness():
    """As its docstring states: other frames of the same mean are nearer to the last G, and none is more aligned."""
    before, trained, after = a_gram_round("florg", EQUAL)
    _, root, right = torch.linalg.svd(torch.cat([p**0.5 * G for p, G in trained]), full_matrices=False)
    whole = root[:, None] * right
    assert len(whole) > len(before)
    reached, draws = float((before * after).sum()), torch.Generator().manual_seed(3)
    frame = after @ torch.linalg.pinv(whole)
    assert torch.allclose(frame @ frame.T, torch.eye(len(frame)).double(), atol=1e-9)
    for size in (1e-3, 0.1, 10.0):
        for _ in range(50):
            other = orthonormal(frame + size * torch.randn(frame.shape, generator=draws, dtype=frame.dtype))
            assert float((before * (other @ whole)).sum()) < reached
    nearer = frame
    for _ in range(2000):
        nearer = orthonormal(nearer - 0.02 * (nearer @ whole - before) @ whole.T)
    assert (nearer @ whole - before).norm() < 0.9 * (after - before).norm()
    said = " ".join(sys.modules[FLoRG.__module__].__doc__.split())
    assert "S maximizes the inner product <G, S G~>" in said
    assert "It minimizes neither" in said

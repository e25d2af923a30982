"""Factored linear algebra against the dense matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.errors import ConfigError
from fedpeft.peft.low_rank import (
    COSTS,
    LowRank,
    compact,
    dense_is_smaller,
    inner_products,
    recompress,
    stack,
    truncated_svd,
)

EXACT = ["qr", "gram", "dense", "auto"]
sizes = st.integers(1, 15)


def random_product(out, in_, width, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(out, width, generator=generator, dtype=dtype)
    return LowRank(left, torch.randn(width, in_, generator=generator, dtype=dtype))


@settings(max_examples=60, deadline=None)
@given(out=sizes, in_=sizes, width=sizes, rank=sizes, seed=st.integers(0, 10_000), method=st.sampled_from(EXACT))
def test_truncated_svd_is_the_dense_one(out, in_, width, rank, seed, method):
    product = random_product(out, in_, width, seed)
    svd = truncated_svd(product, rank, method)
    S = torch.linalg.svdvals(product.dense())
    S = torch.nn.functional.pad(S, (0, max(0, rank - len(S))))[:rank]
    size = float(S[0])
    assert svd.U.shape == (out, rank)
    assert svd.Vt.shape == (rank, in_)
    tolerance = 2e-6 if method == "gram" else 1e-11
    assert torch.allclose(svd.S, S, rtol=0, atol=tolerance * size)
    # the error of the approximation is that of the best one
    error = (svd.low_rank().dense() - product.dense()).norm().square()
    least = (product.dense().norm().square() - S.square().sum()).clamp_min(0)
    assert float(error - least) <= 10 * tolerance * size**2
    clear = 1e-3 * size < svd.S
    assert torch.allclose(svd.Vt[clear] @ svd.Vt[clear].T, torch.eye(int(clear.sum())).double(), atol=1e-6)
    assert torch.allclose(svd.U[:, clear].T @ svd.U[:, clear], torch.eye(int(clear.sum())).double(), atol=1e-6)


@pytest.mark.parametrize("method", EXACT)
def test_fp32_factors_keep_fp32_accuracy(method):
    product = random_product(60, 90, 40, 0, torch.float32)
    exact = LowRank(product.left.double(), product.right.double()).dense()
    U, S, Vt = torch.linalg.svd(exact, full_matrices=False)
    best = (U[:, :8] * S[:8]) @ Vt[:8]
    svd = truncated_svd(product, 8, method)
    assert svd.U.dtype == svd.S.dtype == svd.Vt.dtype == torch.float32
    assert float((svd.low_rank().dense() - best).norm() / best.norm()) < 1e-6


def test_badly_scaled_factors_do_not_hide_a_direction_from_gram():
    product = random_product(30, 20, 6, 0)
    scales = torch.logspace(-8, 8, 6, dtype=torch.float64)
    skewed = LowRank(product.left * scales, product.right / scales[:, None])
    svd = truncated_svd(skewed, 6, "gram")
    assert torch.allclose(svd.low_rank().dense(), product.dense(), atol=1e-5)


def test_randomised_finds_a_decaying_spectrum():
    product = random_product(80, 60, 30, 0)
    decaying = LowRank(product.left * 0.7 ** torch.arange(30), product.right)
    svd = truncated_svd(decaying, 8, "randomised")
    S = torch.linalg.svdvals(decaying.dense())
    error = float((svd.low_rank().dense() - decaying.dense()).norm())
    assert error <= 1.001 * float(S[8:].norm())


@pytest.mark.parametrize("method", [*EXACT, "randomised"])
def test_missing_directions_are_zero(method):
    product = random_product(9, 7, 2, 0)
    svd = truncated_svd(product, 5, method)
    assert svd.S.count_nonzero() == 2
    assert svd.U[:, 2:].count_nonzero() == svd.Vt[2:].count_nonzero() == 0
    nothing = truncated_svd(product.scaled(0.0), 5, method)
    assert all(t.count_nonzero() == 0 for t in (nothing.U, nothing.S, nothing.Vt))


def test_an_unknown_method_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'gram'"):
        truncated_svd(random_product(3, 3, 2, 0), 1, "grams")


@settings(max_examples=30, deadline=None)
@given(widths=st.lists(st.integers(1, 6), min_size=1, max_size=4), out=sizes, in_=sizes, seed=st.integers(0, 999))
def test_stacks_and_inner_products(widths, out, in_, seed):
    products = [random_product(out, in_, w, seed + i) for i, w in enumerate(widths)]
    weights = [0.5 + i for i in range(len(widths))]
    dense = torch.stack([p.dense() for p in products])
    joined = stack(products, weights)
    assert joined.width == sum(widths)
    expected = torch.einsum("k,koi->oi", torch.tensor(weights).double(), dense)
    assert torch.allclose(joined.dense(), expected)
    assert torch.allclose(inner_products(products), torch.einsum("koi,loi->kl", dense, dense))
    assert joined.norm() == pytest.approx(float(expected.norm()), rel=1e-6, abs=1e-6)


def test_recompression_records_the_energy_it_discards():
    product = stack([random_product(20, 30, 3, 0), random_product(20, 30, 3, 0)])  # width 6, rank 3
    exact, lost = recompress(product)
    assert exact.width == 3
    assert lost == pytest.approx(0, abs=1e-20)
    assert torch.allclose(exact.dense(), product.dense())

    S = torch.linalg.svdvals(product.dense()).square()
    cut, lost = recompress(product, rank=2)
    assert cut.width == 2
    assert lost == pytest.approx(float(S[2] / S[:3].sum()))
    within, lost = recompress(product, tolerance=float(S[2] / S[:3].sum()) * 1.01)
    assert within.width == 2
    assert 0 < lost <= float(S[2] / S[:3].sum()) * 1.01
    assert recompress(product.scaled(0.0))[0].width == 0


def test_the_smaller_form_is_kept():
    thin, wide = random_product(20, 30, 12, 0), random_product(20, 30, 13, 0)
    assert not dense_is_smaller(20, 30, 12)  # 12 * 50 = 600 = 20 * 30
    assert compact(thin) is thin
    assert torch.equal(compact(wide), wide.dense())


def test_the_cost_model_prefers_factors_where_they_are_thin():
    assert COSTS.cheapest(4096, 4096, 800, 8, torch.float32) == "gram"
    assert COSTS.cheapest(4096, 4096, 800, 8, torch.float64) == "qr"
    assert COSTS.cheapest(384, 384, 3200, 8, torch.float32) == "gram"
    assert COSTS.cheapest(384, 384, 3200, 8, torch.float64) == "dense"

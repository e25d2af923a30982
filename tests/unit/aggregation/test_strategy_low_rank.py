"""Factored linear algebra against the dense matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.peft.low_rank import (
    COSTS,
    LowRank,
    compute_cholesky_root,
    compute_eigen_root,
    compute_inner_products,
    compute_truncated_svd,
    merge_copies,
    recompress,
    stack,
)
from tests.refusals import refuses

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
    svd = compute_truncated_svd(product, rank, method)
    singular = torch.linalg.svdvals(product.to_dense())
    singular = torch.nn.functional.pad(singular, (0, max(0, rank - len(singular))))[:rank]
    size = float(singular[0])
    assert svd.U.shape == (out, rank)
    assert svd.Vt.shape == (rank, in_)
    tolerance = 2e-6 if method == "gram" else 1e-11
    assert torch.allclose(svd.S, singular, rtol=0, atol=tolerance * size)
    # the error of the approximation is that of the best one
    error = (svd.to_low_rank().to_dense() - product.to_dense()).norm().square()
    least = (product.to_dense().norm().square() - singular.square().sum()).clamp_min(0)
    assert float(error - least) <= 10 * tolerance * size**2
    clear = 1e-3 * size < svd.S
    assert torch.allclose(svd.Vt[clear] @ svd.Vt[clear].T, torch.eye(int(clear.sum())).double(), atol=1e-6)
    assert torch.allclose(svd.U[:, clear].T @ svd.U[:, clear], torch.eye(int(clear.sum())).double(), atol=1e-6)


@pytest.mark.parametrize("method", EXACT)
def test_fp32_factors_keep_fp32_accuracy(method):
    product = random_product(60, 90, 40, 0, torch.float32)
    exact = LowRank(product.left.double(), product.right.double()).to_dense()
    left_vectors, singular, right_vectors = torch.linalg.svd(exact, full_matrices=False)
    best = (left_vectors[:, :8] * singular[:8]) @ right_vectors[:8]
    svd = compute_truncated_svd(product, 8, method)
    assert svd.U.dtype == svd.S.dtype == svd.Vt.dtype == torch.float32
    assert float((svd.to_low_rank().to_dense() - best).norm() / best.norm()) < 1e-6


def test_badly_scaled_factors_do_not_hide_a_direction_from_gram():
    product = random_product(30, 20, 6, 0)
    scales = torch.logspace(-8, 8, 6, dtype=torch.float64)
    skewed = LowRank(product.left * scales, product.right / scales[:, None])
    svd = compute_truncated_svd(skewed, 6, "gram")
    assert torch.allclose(svd.to_low_rank().to_dense(), product.to_dense(), atol=1e-5)


@pytest.mark.parametrize("alike", ["columns", "rows", "both"])
def test_factors_that_repeat_themselves(alike):
    """Their Gram matrices are singular: the root is taken of the other one, or of eigenvectors."""
    product = random_product(30, 20, 6, 0)
    left, right = product.left, product.right
    if alike != "rows":
        left = left.index_copy(1, torch.tensor([4]), left[:, :1])
    if alike != "columns":
        right = right.index_copy(0, torch.tensor([5]), right[1:2])
    repeated = LowRank(left, right)
    svd = compute_truncated_svd(repeated, 6, "gram")
    assert torch.allclose(svd.to_low_rank().to_dense(), repeated.to_dense(), atol=1e-6)


@pytest.mark.parametrize("root", [compute_cholesky_root, compute_eigen_root])
def test_both_roots_of_a_gram_matrix(root):
    left, right = random_product(9, 9, 12, 1).left, random_product(9, 9, 14, 2).left
    gram, other = left @ left.T, right @ right.T
    root_factor = root(gram)
    assert torch.allclose(root_factor.matrix @ root_factor.matrix.T, gram)
    around = root_factor.transform(other)
    assert torch.allclose(around.tril(), (root_factor.matrix.T @ other @ root_factor.matrix).tril())
    assert torch.allclose(root_factor.matrix.T @ root_factor.undo(around.tril()), around.tril())
    assert torch.equal(other, right @ right.T)


@settings(max_examples=30, deadline=None)
@given(copies=st.lists(st.sampled_from([-1, 0, 1, 2, 3]), max_size=6), seed=st.integers(0, 10_000))
def test_copies_of_columns_are_summed(copies, seed):
    """-1 stands for a column of zeros, others for a multiple of that column."""
    product = random_product(11, 7, 4 + len(copies), seed)
    left = product.left
    for place, source in enumerate(copies):
        left[:, 4 + place] = left[:, source] * 2.0 ** (place - 2) if source >= 0 else 0
    found = merge_copies(product)
    assert torch.allclose(found.to_dense(), product.to_dense())
    assert found.width == 4 + min(1, copies.count(-1))


def test_randomised_finds_a_decaying_spectrum():
    product = random_product(80, 60, 30, 0)
    decaying = LowRank(product.left * 0.7 ** torch.arange(30), product.right)
    svd = compute_truncated_svd(decaying, 8, "randomised")
    singular = torch.linalg.svdvals(decaying.to_dense())
    error = float((svd.to_low_rank().to_dense() - decaying.to_dense()).norm())
    assert error <= 1.001 * float(singular[8:].norm())


@pytest.mark.parametrize("method", [*EXACT, "randomised"])
def test_missing_directions_are_zero(method):
    product = random_product(9, 7, 2, 0)
    svd = compute_truncated_svd(product, 5, method)
    assert svd.S.count_nonzero() == 2
    assert svd.U[:, 2:].count_nonzero() == svd.Vt[2:].count_nonzero() == 0
    nothing = compute_truncated_svd(product.scale(0.0), 5, method)
    assert all(t.count_nonzero() == 0 for t in (nothing.U, nothing.S, nothing.Vt))


def test_an_unknown_method_is_refused():
    with refuses("FP1241", "did you mean 'gram"):
        compute_truncated_svd(random_product(3, 3, 2, 0), 1, "grams")


@settings(max_examples=30, deadline=None)
@given(widths=st.lists(st.integers(1, 6), min_size=1, max_size=4), out=sizes, in_=sizes, seed=st.integers(0, 999))
def test_stacks_and_inner_products(widths, out, in_, seed):
    products = [random_product(out, in_, w, seed + i) for i, w in enumerate(widths)]
    weights = [0.5 + i for i in range(len(widths))]
    dense = torch.stack([p.to_dense() for p in products])
    joined = stack(products, weights)
    assert joined.width == sum(widths)
    expected = torch.einsum("k,koi->oi", torch.tensor(weights).double(), dense)
    assert torch.allclose(joined.to_dense(), expected)
    assert torch.allclose(compute_inner_products(products), torch.einsum("koi,loi->kl", dense, dense))
    assert joined.norm() == pytest.approx(float(expected.norm()), rel=1e-6, abs=1e-6)


def test_recompression_keeps_the_directions_that_there_are_or_all_but_a_share_of_the_energy():
    product = stack([random_product(20, 30, 3, 0), random_product(20, 30, 3, 0)])  # width 6, rank 3
    exact = recompress(product, 1e-14)
    assert exact.width == 3
    assert torch.allclose(exact.to_dense(), product.to_dense())
    singular = torch.linalg.svdvals(product.to_dense()).square()
    within = recompress(product, float(singular[2] / singular[:3].sum()) * 1.01)
    assert within.width == 2
    assert float((within.to_dense() - product.to_dense()).square().sum()) == pytest.approx(float(singular[2]))
    nothing = recompress(product.scale(0.0), 1e-14)
    assert nothing.width == 1
    assert not nothing.to_dense().any()


def test_the_cost_model_prefers_factors_where_they_are_thin():
    assert COSTS.choose_cheapest(4096, 4096, 800, 8, torch.float32) == "gram"
    assert COSTS.choose_cheapest(4096, 4096, 800, 8, torch.float64) == "qr"
    assert COSTS.choose_cheapest(384, 384, 3200, 8, torch.float32) == "gram"
    assert COSTS.choose_cheapest(384, 384, 3200, 8, torch.float64) == "dense"

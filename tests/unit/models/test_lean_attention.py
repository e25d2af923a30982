"""Attention that keeps queries, keys and values as they came: torch's own outputs and gradients, in less memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from fedpeft.models.lean_attention import attend_lean


def given(dtype, heads=4, groups=2, tokens=20):
    random = torch.Generator().manual_seed(0)
    sizes = (heads, heads // groups, heads // groups)
    return [torch.randn(2, h, tokens, 8, generator=random).to(dtype).requires_grad_() for h in sizes]


def two_rows_in_one(tokens=20):
    """Who is seen where two rows of a half each share a sequence, (1, 1, T, T)."""
    half = torch.arange(tokens) // (tokens // 2)
    return ((half[:, None] == half) & torch.ones(tokens, tokens).tril().bool())[None, None].expand(2, -1, -1, -1)


def torchs_own(query, key, value, mask, groups):
    """Keys and values written out for each head, in fp32 for bf16."""
    wide = torch.float32 if query.dtype == torch.bfloat16 else query.dtype
    q, k, v = (t.to(wide) for t in (query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)))
    return (
        functional.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None).to(query.dtype).transpose(1, 2)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["none", "bool", "added"])
def test_outputs_and_gradients_are_torch_s_own(dtype, groups, kind):
    mask = None if kind == "none" else two_rows_in_one()
    if kind == "added":
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    module, ours = SimpleNamespace(num_key_value_groups=groups), given(dtype, groups=groups)
    found = attend_lean(module, *ours, mask, scaling=None)
    if dtype != torch.bfloat16 and (mask is None or groups == 1):
        assert found is None, "torch keeps nothing more"
        return
    theirs = [t.detach().clone().requires_grad_() for t in ours]
    added = mask if mask is None or mask.dtype == torch.bool or dtype != torch.bfloat16 else mask.float()
    expected = torchs_own(*theirs, added, groups)
    assert torch.equal(found, expected)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found.backward(direction)
    expected.backward(direction)
    near = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    for one, other in zip(ours, theirs, strict=True):
        assert (one.grad - other.grad).abs().max() <= near * other.grad.abs().max()
        assert torch.equal(one.grad, other.grad) or groups > 1, "of groups the heads are added up in another order"


def test_of_bf16_nothing_but_the_output_is_kept_in_fp32():
    query, key, value = given(torch.bfloat16)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        attend_lean(SimpleNamespace(num_key_value_groups=2), query, key, value, None)
    by_dtype = [sum(t.numel() for t in kept.values() if t.dtype == d) for d in (torch.bfloat16, torch.float32)]
    assert by_dtype == [2 * query.numel(), query.numel() + query.numel() // 8]


@pytest.mark.parametrize(
    "more", [{"dropout": 0.1}, {"position_bias": torch.zeros(1)}, {"softcap": 3.0}], ids=["dropout", "bias", "cap"]
)
def test_what_it_does_not_know_is_left_to_torch(more):
    assert attend_lean(SimpleNamespace(num_key_value_groups=2), *given(torch.bfloat16), None, **more) is None


def test_without_gradients_nothing_is_kept_anyway():
    with torch.no_grad():
        assert attend_lean(SimpleNamespace(num_key_value_groups=2), *given(torch.bfloat16), None) is None


def test_gradients_per_example_go_through_torch_s_own():
    query, key, value = (t.detach() for t in given(torch.bfloat16, groups=1))

    def total(query, key, value):
        one = [t[None] for t in (query, key, value)]
        assert attend_lean(SimpleNamespace(), *one, None) is None
        return torchs_own(*one, None, 1).float().sum()

    assert torch.func.vmap(torch.func.grad(total))(query, key, value).shape == query.shape

"""Fused attention is asked for deterministic gradients, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from fedpeft.models import determinism
from fedpeft.models.determinism import compute_deterministically, make_attention_deterministic


@pytest.fixture
def switched(monkeypatch):
    """How the process was switched, in order; it computes deterministically meanwhile, and warns."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    compute_deterministically()
    found, switch = [], torch.use_deterministic_algorithms

    def note(on, warn_only):
        found.append(warn_only)
        switch(on, warn_only=warn_only)

    monkeypatch.setattr(torch, "use_deterministic_algorithms", note)
    yield found
    switch(before[0], warn_only=before[1])


def attended(transposed=True):
    """Output and inputs of fused attention as transformers has it."""
    inputs = [torch.randn(2, 3, 8, 16, requires_grad=True) for _ in range(3)]
    output = functional.scaled_dot_product_attention(*inputs)
    return (output.transpose(1, 2).contiguous() if transposed else output), inputs


@pytest.mark.parametrize("transposed", [True, False])
def test_only_the_fused_gradients_are_computed_strictly(transposed, switched):
    output, inputs = attended(transposed)
    make_attention_deterministic(output)
    seen = []
    for tensor in (output, *inputs):
        tensor.register_hook(lambda _: seen.append(torch.is_deterministic_algorithms_warn_only_enabled()))
    output.square().sum().backward()
    assert switched == [False, True], "strictly for the fused operation, and back"
    assert seen == [True] * 4
    others = [tensor.detach().clone().requires_grad_(True) for tensor in inputs]
    functional.scaled_dot_product_attention(*others).square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(inputs, others, strict=True))


def test_what_is_not_fused_or_has_no_gradient_is_left_alone(switched):
    make_attention_deterministic(torch.ones(3))
    x = torch.ones(3, requires_grad=True)
    make_attention_deterministic(x)
    y = x * 2
    make_attention_deterministic(y)
    y.sum().backward()
    assert switched == []


def test_a_process_that_does_not_compute_deterministically_stays_so():
    output, _ = attended()
    make_attention_deterministic(output)
    output.sum().backward()
    assert not torch.are_deterministic_algorithms_enabled()


def test_of_torch_s_fused_kernels_those_without_a_deterministic_form_are_off(switched):
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert determinism.FUSED in attended(False)[0].grad_fn.name()

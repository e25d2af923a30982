"""Products with the thin factors of many clients, and their gradients, in the memory order that is fastest.

Matrix libraries read a factor fastest with its long side innermost. A (K, r, in) has that order; B (K, out, r) is
transposed in each pass. MKL's fp32 product with (out, r) takes four to five times as long (AMD EPYC of 2023, rank 8).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedpeft.models.kernels import FrozenLinear
from fedpeft.models.packing import Group


class Factors(NamedTuple):
    """Factors A (K, r, in) and B (K, out, r) in at least the precision of the pass, and scales (K, 1, 1)."""

    A: Tensor
    B: Tensor
    scales: Tensor


def split_evenly(clients: int, x: Tensor) -> tuple[Group, ...]:
    """Return one group: the tokens of the first `clients` clients, which have equally many rows of x (rows, ..., d)."""
    return ((slice(0, clients), slice(0, x.numel() // x.shape[-1])),)


def add_low_rank(
    y: Tensor | None, x: Tensor, factors: Factors, groups: Sequence[Group], layer: FrozenLinear | None = None
) -> Tensor:
    """Return y + s B A x for each client, as one step of autograd.

    Args:
        y: (rows, ..., out), one client's rows after another's; None: the output of `layer` on x.
        x: (rows, ..., in).
        factors: the clients' factors and scales.
        groups: which tokens belong to which clients; tokens without a client keep their y.
        layer: a frozen layer; if given, the gradient of x includes that through the layer.
    """
    total: Tensor = _LowRankSum.apply(y, x, *factors, groups, layer)  # type: ignore[no-untyped-call]
    return total


class _LowRankSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor | None,
        x: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        scales: Tensor,
        groups: Sequence[Group],
        layer: FrozenLinear | None,
    ) -> Tensor:
        if layer is not None:
            total = layer.product(x)
        else:
            assert y is not None
            total = y.clone(memory_format=torch.contiguous_format)
        clients = groups[-1][0].stop
        narrow = lora_a[:clients].to(x.dtype)
        wide = (lora_b[:clients] * scales[:clients]).transpose(1, 2).to(x.dtype).contiguous()
        hidden = []
        for whose, tokens in groups:
            hidden.append(_project_down(_select_tokens(x, whose, tokens), narrow[whose]))
            _select_tokens(total, whose, tokens).baddbmm_(hidden[-1], wide[whose])
        ctx.save_for_backward(x, narrow, wide)
        ctx.hidden, ctx.groups, ctx.layer, ctx.scales = hidden, groups, layer, scales
        ctx.shapes = lora_a.shape, lora_b.shape, lora_a.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, narrow, wide = ctx.saved_tensors
        gradient = gradient.contiguous()
        a_shape, b_shape, dtype = ctx.shapes
        of_a = _allocate_gradient(a_shape, len(narrow), dtype, x.device) if ctx.needs_input_grad[2] else None
        of_b = _allocate_gradient(b_shape, len(narrow), dtype, x.device) if ctx.needs_input_grad[3] else None
        of_x = None
        if ctx.needs_input_grad[1]:
            if ctx.layer is None:  # always contiguous, because the loop below writes into views of it
                of_x = torch.zeros_like(x, memory_format=torch.contiguous_format)
            else:
                of_x = ctx.layer.compute_input_gradient(gradient)
        for hidden, (whose, tokens) in zip(ctx.hidden, ctx.groups, strict=True):
            of_total = _select_tokens(gradient, whose, tokens)
            of_hidden = _project_down(of_total, wide[whose])
            if of_a is not None:
                of_a[whose] = torch.bmm(of_hidden.transpose(1, 2), _select_tokens(x, whose, tokens))
            if of_b is not None:
                of_wide = torch.bmm(hidden.transpose(1, 2), of_total)
                torch.mul(of_wide.transpose(1, 2), ctx.scales[whose], out=of_b[whose])
            if of_x is not None:
                _select_tokens(of_x, whose, tokens).baddbmm_(of_hidden, narrow[whose])
        return gradient if ctx.needs_input_grad[0] else None, of_x, of_a, of_b, None, None, None


def _select_tokens(x: Tensor, whose: slice, tokens: slice) -> Tensor:
    """Return the tokens of a group of clients, (clients, tokens of each, d); a view if x is contiguous."""
    flat = x.reshape(-1, x.shape[-1])
    return flat[tokens].view(whose.stop - whose.start, -1, x.shape[-1])


def _project_down(x: Tensor, factor: Tensor) -> Tensor:
    """Return x factor^T (K, tokens, r) for x (K, tokens, d) and a factor (K, r, d)."""
    if x.dtype == torch.bfloat16:
        return torch.bmm(x, factor.transpose(1, 2))
    return torch.bmm(factor, x.transpose(1, 2)).transpose(1, 2)  # up to 1.8 times as fast in MKL's fp32


def _allocate_gradient(shape: torch.Size, clients: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate a gradient for all clients; it is zero for those that are not in the pass."""
    gradient = torch.empty(shape, dtype=dtype, device=device)
    gradient[clients:].zero_()
    return gradient

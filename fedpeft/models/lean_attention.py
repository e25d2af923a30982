"""Attention on CPUs that keeps queries, keys and values as they came for the way back.

Torch keeps what its kernel read: of a base in bf16 copies in fp32, in which the kernel is faster, and under a mask keys
and values once for each head that asks for them (`num_key_value_groups`). Both are made again from what came. Outputs
are those of torch's own function, bit by bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FLASH = 1
"""What `torch._fused_sdp_choice` calls the kernel that this is about (SDPBackend.FLASH_ATTENTION)."""


def attend_lean(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *rest: Any, **named: Any
) -> Tensor | None:
    """Output (B, T, heads, d) of attention on (B, heads, T, d); None where torch's own function keeps no more, or would
    take another kernel. The arguments are those of transformers' attention functions."""
    groups = getattr(module, "num_key_value_groups", 1)
    repeats = mask is not None and groups > 1
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if torch._C._are_functorch_transforms_active():  # gradients per example: they need torch's own operations
        return None
    if rest or not wanted or query.device.type != "cpu" or not (query.dtype == torch.bfloat16 or repeats):
        return None
    if named.get("dropout") or any(named.get(n) is not None for n in ("position_bias", "softcap")):
        return None
    asking, there = query.shape[2], key.shape[2]
    if asking < 2 or asking != there or query.shape[1] != groups * key.shape[1]:
        return None
    causal = named.get("is_causal")
    causal = mask is None and bool(getattr(module, "is_causal", True) if causal is None else causal)
    scale: float | None = named.get("scaling")
    mask = None if mask is None else _convert_mask(mask, _get_wide_dtype(query.dtype))
    if not _can_use_flash(query, key, value, mask, causal, scale):
        return None
    found: Tensor = _Attention.apply(query, key, value, mask, causal, scale)  # type: ignore[no-untyped-call]
    return found.transpose(1, 2).contiguous()


def _get_wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _convert_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as the kernel adds it; a boolean one says who is seen."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)


def _can_use_flash(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> bool:
    """Whether torch's own function would take the flash kernel; only shapes are looked at."""
    like = [t.new_empty(t.shape, dtype=_get_wide_dtype(t.dtype)).requires_grad_() for t in (query, key, value)]
    gqa = query.shape[1] != key.shape[1]
    choice: Any = torch._fused_sdp_choice  # torch's own annotation of it is wrong
    return bool(choice(*like, mask, 0.0, causal, scale=scale, enable_gqa=gqa) == FLASH)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None
    ) -> Tensor:
        wide = [t.to(_get_wide_dtype(t.dtype)) for t in (query, key, value)]
        output, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *wide, 0.0, causal, attn_mask=mask, scale=scale
        )
        ctx.save_for_backward(query, key, value, mask, output, sums)
        ctx.causal, ctx.scale = causal, scale
        given: Tensor = output.to(query.dtype)
        return given

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *given, mask, output, sums = ctx.saved_tensors
        dtype = given[0].dtype
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient.to(output.dtype),
            *(t.to(output.dtype) for t in given),
            output,
            sums,
            0.0,
            ctx.causal,
            attn_mask=mask,
            scale=ctx.scale,
        )
        return *(t.to(dtype) for t in found), None, None, None

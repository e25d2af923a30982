"""Attention on CPUs that stores queries, keys and values in their original form for the backward pass.

Torch stores what its kernel read: fp32 copies for a base in bf16, because the kernel is faster in fp32. Under a mask it
also stores keys and values once for each head that reads them (`num_key_value_groups`). Here both are computed again
from the originals. Outputs equal those of torch's own function bit by bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FLASH = 1
"""The number of the flash kernel in `torch._fused_sdp_choice` (SDPBackend.FLASH_ATTENTION)."""


def attend_lean(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *rest: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> Tensor | None:
    """Compute attention on (B, heads, T, d) as (B, T, heads, d), if that saves memory.

    The arguments are those of transformers' attention functions.

    Returns:
        The output; None if torch's own function would store no more, or would use another kernel.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    if query.device.type != "cpu" or not _would_store_copies(query, key, value, mask, groups):
        return None
    per_example = torch._C._are_functorch_transforms_active()  # such gradients need torch's own operations
    unknown = rest or dropout or any(others.get(name) is not None for name in ("position_bias", "softcap"))
    if per_example or unknown:
        return None
    heads, tokens = query.shape[1:3]
    if tokens < 2 or (groups * key.shape[1], key.shape[2]) != (heads, tokens):
        return None
    causal = mask is None and bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    mask = None if mask is None else _convert_mask(mask, _get_wide_dtype(query.dtype))
    if not _can_use_flash(query, key, value, mask, causal, scaling):
        return None
    output: Tensor = _Attention.apply(query, key, value, mask, causal, scaling)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2).contiguous()


def _would_store_copies(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, groups: int) -> bool:
    """Return whether torch's own function would store more than what it is given."""
    trains = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    return trains and (query.dtype == torch.bfloat16 or (mask is not None and groups > 1))


def _get_wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _convert_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask in the form that the kernel adds; a boolean one marks the visible positions."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)


def _can_use_flash(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> bool:
    """Return whether torch's own function would use the flash kernel; only shapes matter."""
    like = [t.new_empty(t.shape, dtype=_get_wide_dtype(t.dtype)).requires_grad_() for t in (query, key, value)]
    gqa = query.shape[1] != key.shape[1]
    choice: Any = torch._fused_sdp_choice  # torch's type annotation is wrong
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
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient.to(output.dtype),
            *(t.to(output.dtype) for t in given),
            output,
            sums,
            0.0,
            ctx.causal,
            attn_mask=mask,
            scale=ctx.scale,
        )
        return *(t.to(dtype) for t in gradients), None, None, None

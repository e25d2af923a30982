"""Attention in fp32 for a bf16 base on a CPU: torch's bf16 kernel takes over twice as long in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NAME = "sdpa_fp32"
"""What transformers' `attn_implementation` calls it."""


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Any:
    """Scaled dot-product attention on (B, heads, T, d), computed in fp32, returned in the dtype of `query`."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if query.dtype != torch.bfloat16 or query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, *rest, **named)
    output, weights = sdpa_attention_forward(module, query.float(), key.float(), value.float(), *rest, **named)
    return output.to(query.dtype), weights


def register() -> str:
    """Make it known to transformers; returns its name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME

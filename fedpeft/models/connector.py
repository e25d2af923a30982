"""Connectors: layers that map a frozen encoder's features to vectors that another model reads."""

from __future__ import annotations

import torch
from torch import nn

LINEAR = "linear"
"""W x + b."""

MLP = "mlp"
"""Two linear layers with GELU between them."""


def create_connector(kind: str, width: int, out: int) -> nn.Module:
    """Create a connector of a `kind`, LINEAR or MLP, from features (..., width) to (..., out)."""
    if kind == MLP:
        return nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))
    return nn.Linear(width, out)


def draw_weights(connector: nn.Module, scale: float = 1.0) -> None:
    """Draw the weights of a connector from a fixed seed, so that they are the same in every run; biases are zero.

    Args:
        connector: changed in place.
        scale: factor of the last layer's weights; outputs have about this size if inputs have size 1.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in connector.parameters():
            bound = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.0
            drawn = (2 * torch.rand(parameter.shape, generator=generator) - 1) * bound * 3**0.5
            parameter.copy_(drawn)
        for weight in [p for p in connector.parameters() if p.ndim > 1][-1:]:
            weight.mul_(scale)

"""Rows of features as a noisy release needs them: each bounded, whatever it is, and what is told of their lengths.

A feature counts by its direction alone, phi = x / |x|. How long features are the head has to know for its logits to
have a size, so a little of each row's bound is spent on it: with a = `LENGTH_SHARE`, a row adds a (1, u) to two
numbers, u the logarithm of |x|, within [-1, 1]. The quotient of their sums is the mean of u.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LENGTH_SHARE = 0.1
"""a: what lengths may add to a row's norm, against 1 of the direction."""

WIDEST = 10.0
"""Lengths beyond 2^-10 and 2^10 count as these."""

LENGTH_BOUND = 2 * LENGTH_SHARE**2
"""The square of the largest norm that a row can have in the sums of lengths."""


def normalize_rows(features: Tensor) -> Tensor:
    """phi of each row of features (n, width), fp64: of norm 1, or 0 where the features are zero or not finite."""
    x = features.double()
    x = torch.where(torch.isfinite(x).all(dim=1, keepdim=True), x, torch.zeros_like(x))
    return F.normalize(x, dim=1)


def compute_length_sums(features: Tensor) -> Tensor:
    """The two sums over rows (2,), fp64; a row adds at most `LENGTH_BOUND` ** 0.5 in norm."""
    lengths = features.double().norm(dim=1).nan_to_num(nan=1.0, posinf=1.0).clamp(2.0**-WIDEST, 2.0**WIDEST)
    u = torch.log2(lengths) / WIDEST
    return LENGTH_SHARE * torch.stack([torch.ones_like(u), u], dim=1).sum(0)


def compute_typical_length(sums: Tensor) -> float:
    """The geometric mean of the lengths, as (noisy) sums tell; 1 where they tell nothing."""
    rows, logarithms = (float(entry) for entry in sums)
    if not rows > 0:
        return 1.0
    return float(2.0 ** (WIDEST * max(-1.0, min(1.0, logarithms / rows))))


def compute_noise_length(width: int) -> float:
    """The length of `width` standard normal numbers that 2 % exceed: their mean length and two standard deviations."""
    return math.sqrt(width) + math.sqrt(2)


def find_hidden_classes(sums: Tensor, variance: float) -> Tensor:
    """Which classes' sums (classes, width) are no longer than noise of this variance makes them: a mask (classes,)."""
    lengths: Tensor = sums.norm(dim=1)
    return lengths <= math.sqrt(variance) * compute_noise_length(sums.shape[1])

"""Bounded feature vectors and their lengths, for sums that are released with noise.

A feature counts by its direction alone, phi = x / |x|. The head needs the typical length to scale its logits, so a
small part of each example's bound is spent on it. With a = `LENGTH_SHARE`, an example adds a (1, u) to two numbers.
Here u is the logarithm of |x|, scaled to [-1, 1]. The quotient of the two sums is the mean of u.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

LENGTH_SHARE = 0.1
"""a: the length's part of an example's norm, whose direction has norm 1."""

WIDEST = 10.0
"""Lengths beyond 2^-10 and 2^10 count as these."""

LENGTH_BOUND = 2 * LENGTH_SHARE**2
"""Square of the largest norm that an example can have in the sums of lengths."""


def normalize_rows(features: Tensor) -> Tensor:
    """Return phi of features (n, width), fp64: rows of norm 1, or 0 for features that are zero or not finite."""
    x = features.double()
    x = torch.where(torch.isfinite(x).all(dim=1, keepdim=True), x, torch.zeros_like(x))
    return functional.normalize(x, dim=1)


def compute_length_sums(features: Tensor) -> Tensor:
    """Compute the two sums (2,), fp64, to which an example adds at most `LENGTH_BOUND` ** 0.5 in norm."""
    lengths = features.double().norm(dim=1).nan_to_num(nan=1.0, posinf=1.0).clamp(2.0**-WIDEST, 2.0**WIDEST)
    u = torch.log2(lengths) / WIDEST
    return LENGTH_SHARE * torch.stack([torch.ones_like(u), u], dim=1).sum(0)


def compute_typical_length(sums: Tensor) -> float:
    """Compute the geometric mean of the lengths from (noisy) sums; 1 if noise hides the number of examples."""
    rows, logarithms = (float(entry) for entry in sums)
    if not rows > 0:
        return 1.0
    return float(2.0 ** (WIDEST * max(-1.0, min(1.0, logarithms / rows))))


def compute_noise_length(width: int) -> float:
    """Compute the length that 2 % of vectors of `width` standard normal numbers exceed: mean plus two deviations."""
    return math.sqrt(width) + math.sqrt(2)


def find_hidden_classes(sums: Tensor, variance: float) -> Tensor:
    """Return a mask (classes,) of the classes whose sums (classes, width) are no longer than noise of this variance."""
    lengths: Tensor = sums.norm(dim=1)
    return lengths <= math.sqrt(variance) * compute_noise_length(sums.shape[1])

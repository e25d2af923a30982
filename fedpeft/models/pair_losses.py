"""Losses that pull the two sides of a pair together and push different pairs apart.

Queries x and documents y are rows of unit length, s_ij = x_i . y_j.

    infonce   l_i = -(log softmax_j(t s_ij)_i + log softmax_j(t s_ji)_i) / 2
              van den Oord et al., arXiv 1807.03748, equation 4, in both directions as in CLIP (Radford et al., arXiv
              2103.00020, figure 3)
    sigmoid   l_i = -sum_j log sigmoid(z_ij (t s_ij + b)),   z_ij = 1 for j = i and -1 for others
              Zhai et al., arXiv 2303.15343, algorithm 1

A batch's loss is the mean of l_i. Both sum over the pairs of one batch of one client, so pairs of other clients are
never negatives. The scale t and the bias b are settings. SigLIP learns them over tens of thousands of steps; in the few
steps of a federation they would hardly move. SigLIP's start b = -10 is -log of 22,000 negatives: with it an untrained
model predicts about the right share of matching pairs. Without a setting b_i is -log of the number of negatives of row
i.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as functional
from torch import Tensor

PairLoss = Callable[[Tensor, Tensor, float, float | None], Tensor]
"""A function that computes the loss of each row (B,).

Its arguments are similarities (B, B) of queries and documents, a mask of negatives (B, B), scale and bias.
"""


def compute_infonce_loss(similarities: Tensor, negative: Tensor, scale: float, bias: float | None = None) -> Tensor:
    """Compute InfoNCE in both directions, (B,); the bias cancels out."""
    logits = scale * similarities
    positive = logits.diagonal()
    ignored = ~negative
    ignored.fill_diagonal_(False)
    among = logits.masked_fill(ignored, float("-inf"))
    return (among.logsumexp(1) + among.logsumexp(0)) / 2 - positive


def compute_sigmoid_loss(similarities: Tensor, negative: Tensor, scale: float, bias: float | None = None) -> Tensor:
    """Compute SigLIP's loss, (B,), from each row's own pair and its negatives."""
    among = negative.sum(1, keepdim=True).clamp(min=1)
    logits = scale * similarities + (-among.to(similarities.dtype).log() if bias is None else bias)
    apart = functional.softplus(logits).masked_fill(~negative, 0.0).sum(1)
    return functional.softplus(-logits.diagonal()) + apart


PAIR_LOSSES: dict[str, PairLoss] = {"infonce": compute_infonce_loss, "sigmoid": compute_sigmoid_loss}
"""Losses by their name in a task's setting."""

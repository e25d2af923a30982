"""Adversarial local training: each step also sees its examples with their tokens moved to where the loss is larger.

    loss = (L(x) + L(x + d)) / 2,   d_t = e g_t / norm(g_t),   g the gradient of L at the tokens' vectors x

This is the step of Miyato et al. (ICLR 2017, arXiv 1605.07725). They take one norm over the whole text; here each token
has its own. e is a share of the mean norm of the example's word vectors. Adversarial training does not correct drift:
it is here because it acts in local steps. A step takes at least twice the time. Words are moved before the first block,
so the activation cache can't serve this training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from fedpeft.clients.drift import Correction
from torch import Tensor

from fedpeft.data.examples import Batch
from fedpeft.models.task import FederatedModel, RowLosses
from fedpeft.parts import setting
from fedpeft.trust.embedding_attack import get_embedding, shift_embeddings


@dataclass(frozen=True)
class Adversarial(Correction):
    """Local steps on the examples and on their adversarial neighbors."""

    strength: float = setting(0.05, "e: how far a token is moved, as a share of the mean norm", above=0, high=1)

    def around(self, model: FederatedModel, losses: Callable[[Batch], RowLosses], batch: Batch) -> RowLosses:
        """Return the mean of the losses on the examples as they are, and moved."""
        layer, mask = get_embedding(model), batch["attention_mask"]
        with torch.no_grad():
            vectors = layer(batch["input_ids"])
        still = torch.zeros_like(vectors).requires_grad_(True)
        with shift_embeddings(layer, still, mask):
            plain = losses(batch)
        with shift_embeddings(layer, self._step(plain, still, vectors, mask), mask):
            worse = losses(batch)
        return RowLosses((plain.sums + worse.sums) / 2, plain.counts, plain.correct)

    def _step(self, losses: RowLosses, at: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        """Return d, for the vectors (rows, tokens, width) at which the losses were computed."""
        (gradient,) = torch.autograd.grad(losses.sums.sum(), [at], retain_graph=True)
        mask = mask[..., None].to(vectors.dtype)
        norms = vectors.detach().norm(dim=-1, keepdim=True) * mask
        radius = self.strength * norms.sum(1, keepdim=True) / mask.sum(1, keepdim=True)  # within an example
        length = gradient.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        step: Tensor = radius * gradient / length * mask
        return step.to(vectors.dtype)


part = Adversarial

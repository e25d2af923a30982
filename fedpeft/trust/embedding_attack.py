"""An attack on a text by projected gradient ascent on the embeddings of its tokens, the worst case of small changes.

    delta <- projection onto norm(delta_t) <= e of  delta + a g_t / norm(g_t),   for each token t

Miyato et al. (ICLR 2017, arXiv 1605.07725) move embeddings by one step from zero, with one norm for the whole text.
This attack starts at random and takes several steps, as Madry et al. do (ICLR 2018, arXiv 1706.06083), and bounds each
token. e is a share of the mean norm of the base's word embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fedpeft.data.examples import Batch
from fedpeft.models.packing import Packing
from fedpeft.models.task import FederatedModel

STRENGTHS = (0.02, 0.05, 0.1)
STEPS, STARTS = 5, 3


def get_embedding(model: FederatedModel) -> nn.Module:
    """Return the layer that maps a base's tokens to vectors."""
    base: Any = model.base
    layer: nn.Module = base.get_input_embeddings()
    return layer


@contextmanager
def shift_embeddings(layer: nn.Module, delta: Tensor, mask: Tensor) -> Iterator[None]:
    """Add `delta` (rows, tokens, width) to the layer's output while the context is open.

    `mask` (rows, tokens) marks the real tokens. If a pass has no padding (`fedpeft.models.packed_tokens`), the layer
    reads only these, one after another.
    """

    def add_delta(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output + (delta if output.shape == delta.shape else Packing.from_mask(mask.bool(), 1).pack(delta))

    hook = layer.register_forward_hook(add_delta)
    try:
        yield
    finally:
        hook.remove()


def project_rows(delta: Tensor, most: float) -> Tensor:
    """Shorten each token's vector to a length of at most `most`."""
    norms: Tensor = delta.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(delta.dtype).tiny)
    shrunk: Tensor = delta * (most / norms).clamp(max=1.0)
    return shrunk


def find_worst(model: FederatedModel, batch: Batch, strength: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Attack a batch `STARTS` times.

    Returns:
        Which rows stay right in all attacks, bool (rows,), and the last attack's `delta`.
    """
    layer, labels = get_embedding(model), batch["labels"]
    weight: Tensor = layer.weight  # type: ignore[assignment]
    radius = strength * float(weight.detach().norm(dim=1).mean())
    shape = (*batch["input_ids"].shape, weight.shape[1])
    mask = batch["attention_mask"][..., None].to(weight.dtype)
    right = torch.ones(len(labels), dtype=torch.bool)
    delta = torch.zeros(shape)
    for _ in range(STARTS):
        delta = project_rows(radius * torch.randn(shape, generator=random), radius).to(weight.dtype) * mask
        for _ in range(STEPS):
            delta.requires_grad_(True)
            with torch.enable_grad(), shift_embeddings(layer, delta, batch["attention_mask"]):
                loss = functional.cross_entropy(model(batch), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, [delta])
            length = gradient.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
            step = 2.5 * radius / STEPS * gradient / length
            delta = project_rows(delta.detach() + step, radius) * mask
        with torch.no_grad(), shift_embeddings(layer, delta, batch["attention_mask"]):
            right &= (model(batch).argmax(-1) == labels).cpu()
    return right, delta

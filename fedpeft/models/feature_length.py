"""How long a base's features are, as far as rows tell that nobody wrote: random tokens, or drawn pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from fedpeft.data.dead_leaves import draw_dead_leaves
from fedpeft.data.images import PATCHES
from fedpeft.data.square_pictures import convert_to_model_input
from fedpeft.models.tasks.classification import Classifier

ROWS, TOKENS, SIDE = 16, 32, 28
"""Rows that are made up, tokens of a text, and pixels a side of a picture."""


def measure_feature_length(model: Classifier) -> float:
    """The mean length of what the head of `model` reads of made-up rows."""
    parameter = next(model.base.parameters())
    with torch.inference_mode():
        features: Tensor = model.features({n: t.to(parameter.device) for n, t in _make_up_rows(model).items()})
    return float(features.float().norm(dim=-1).mean())


def _make_up_rows(model: Classifier) -> dict[str, Tensor]:
    patch = getattr(model.base.config, "patch_size", None)
    if patch is not None:
        pictures = convert_to_model_input(draw_dead_leaves(ROWS, SIDE), PATCHES * patch)
        return {"pixel_values": pictures.to(next(model.base.parameters()).dtype)}
    vocabulary = len(model.base.get_input_embeddings().weight)  # type: ignore[operator]
    ids = torch.randint(vocabulary, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

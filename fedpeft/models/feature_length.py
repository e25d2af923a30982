"""The mean length of a base's features, estimated on made-up examples: random tokens or drawn images."""

from __future__ import annotations

import torch
from torch import Tensor

from fedpeft.data.dead_leaves import draw_dead_leaves
from fedpeft.data.images import PATCHES
from fedpeft.data.square_pictures import convert_to_model_input
from fedpeft.models.tasks.classification import Classifier

ROWS, TOKENS, SIDE = 16, 32, 28
"""Number of made-up examples, tokens of a text, and pixels a side of an image."""


def measure_feature_length(model: Classifier) -> float:
    """Measure the mean length of the features that the head of `model` reads, on made-up examples."""
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

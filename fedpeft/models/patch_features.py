"""What a frozen vision transformer makes of images, as few vectors of each: its patches' last hidden states.

Small images have 4 x 4 patches (`fedpeft.data.images`), larger ones more; they are pooled to 4 x 4, or to 2 x 2 or one
where fewer are wanted. Computed in fp32, and kept with the rows: nothing below a connector is ever trained.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpeft.data.images import PATCHES, convert_images
from fedpeft.errors import ModelError
from fedpeft.models import encoders
from fedpeft.models.loading import load_base
from fedpeft.models.tasks.classification import compute_hidden_states

ROWS = 32
"""Images of a pass."""

SIDES = (1, 2, 4)
"""Vectors along a side of an image that its patches can be pooled to."""


def patch_features(images: np.ndarray, folder: Path, side: int = PATCHES) -> np.ndarray:
    """Features of images by the encoder in `folder`.

    Args:
        images: uint8 (rows, height, width) or (rows, height, width, 3).
        side: one of `SIDES`.

    Returns:
        float32 (rows, side * side, width), from the upper left, row by row.

    Raises:
        ModelError: the encoder is no vision transformer of patches.
    """
    encoder = load_base(encoders.from_pretrained, folder, torch.float32, compute_hidden_states)
    pixels, tokens = convert_images(images, folder)
    width = int(encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]
    found = np.empty((len(pixels), side * side, width), np.float32)
    for start in range(0, len(pixels), ROWS):
        found[start : start + ROWS] = _pool_patches(
            encoder, torch.from_numpy(pixels[start : start + ROWS]), side, tokens - 1
        ).numpy()
    return found


def _pool_patches(encoder: nn.Module, pixels: Tensor, side: int, count: int) -> Tensor:
    """Of images (B, 3, height, width) of `count` patches, (B, side * side, width)."""
    with torch.inference_mode():
        hidden = compute_hidden_states(encoder, {"pixel_values": pixels})
        if hidden.shape[1] < count:
            raise ModelError(
                f"FP4036 {type(encoder).__name__} gives {hidden.shape[1]} vectors of an image instead of one for each "
                f"of its {count} patches; take a vision transformer such as dinov2_small"
            )
        across = math.isqrt(count)
        grid = hidden[:, -count:].reshape(len(hidden), across, across, -1)  # class and register tokens stand before
        return F.adaptive_avg_pool2d(grid.permute(0, 3, 1, 2), side).flatten(2).transpose(1, 2)

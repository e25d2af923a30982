"""Features of images from a frozen vision transformer: its patches' last hidden states, pooled to a few vectors.

Small images have 4 x 4 patches (`fedpeft.data.images`), larger ones more. They are pooled to 4 x 4, 2 x 2 or one
vector. Features are computed in fp32 and stored with the examples, because nothing below a connector is trained.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fedpeft.data.images import PATCHES, convert_images
from fedpeft.errors import ModelError
from fedpeft.models import encoders
from fedpeft.models.loading import load_base
from fedpeft.models.task import ignore_message
from fedpeft.models.tasks.classification import compute_hidden_states

ROWS = 32
"""Images per pass."""

SIDES = (1, 2, 4)
"""Legal numbers of pooled vectors along a side of an image."""


def compute_patch_features(images: np.ndarray, folder: Path, side: int = PATCHES) -> np.ndarray:
    """Compute the features of images with an encoder.

    Args:
        images: uint8 (rows, height, width) or (rows, height, width, 3).
        folder: the folder of a vision transformer.
        side: one of `SIDES`.

    Returns:
        float32 (rows, side * side, width), from the upper left, row by row.

    Raises:
        ModelError: the encoder is not a vision transformer of patches.
    """
    encoder = load_base(encoders.from_pretrained, folder, torch.float32, compute_hidden_states, ignore_message)
    pixels, tokens = convert_images(images, folder)
    width = int(encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]
    features = np.empty((len(pixels), side * side, width), np.float32)
    for start in range(0, len(pixels), ROWS):
        features[start : start + ROWS] = _pool_patches(
            encoder, torch.from_numpy(pixels[start : start + ROWS]), side, tokens - 1
        ).numpy()
    return features


def _pool_patches(encoder: nn.Module, pixels: Tensor, side: int, count: int) -> Tensor:
    """Pool the `count` patches of images (B, 3, height, width) to (B, side * side, width)."""
    with torch.inference_mode():
        hidden = compute_hidden_states(encoder, {"pixel_values": pixels})
        if hidden.shape[1] < count:
            raise ModelError(
                f"FP4036 {type(encoder).__name__} returns {hidden.shape[1]} vectors for an image of {count} "
                "patches instead of one each; choose a vision transformer such as dinov2_small"
            )
        across = math.isqrt(count)
        grid = hidden[:, -count:].reshape(len(hidden), across, across, -1)  # class and register tokens come first
        return functional.adaptive_avg_pool2d(grid.permute(0, 3, 1, 2), side).flatten(2).transpose(1, 2)

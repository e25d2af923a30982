"""Images to the pixels a vision model expects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from fedpeft.errors import ModelError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
PATCHES = 4
"""Patches per side that small images are enlarged to: 4 x 4 patches and the class token make 17 tokens."""


def image_rows(images: np.ndarray, model_directory: Path) -> tuple[np.ndarray, int]:
    """Images (rows, height, width) or (rows, height, width, 3) in [0, 255] as model input.

    Returns:
        float32 (rows, 3, side, side), enlarged to 4 x 4 patches and normalised as ImageNet; and the tokens per image.

    Raises:
        ModelError: the model has no `patch_size`: it is not a vision transformer.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(model_directory), local_files_only=True)
    patch = getattr(config, "patch_size", None)
    if patch is None:
        raise ModelError(f"the model in {model_directory} takes no images; choose a vision transformer (dinov2_small)")
    pixels = torch.from_numpy(np.asarray(images, dtype=np.float32)) / 255
    pixels = pixels[..., None].expand(*pixels.shape, 3) if pixels.ndim == 3 else pixels
    side = patch * PATCHES
    pixels = F.interpolate(pixels.permute(0, 3, 1, 2), size=(side, side), mode="bilinear", align_corners=False)
    mean, deviation = (torch.tensor(x).view(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    return ((pixels - mean) / deviation).numpy(), PATCHES * PATCHES + 1

"""Images to the pixels a vision model expects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fedpeft.errors import ModelError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
PATCHES = 4
"""Patches per side that small images are enlarged to: 4 x 4 patches and the class token make 17 tokens."""


def vision_of(config: Any) -> Any:
    """The configuration of the vision tower, where a model has one beside another for texts; else `config` itself."""
    return config.vision_config if hasattr(config, "vision_config") and hasattr(config, "text_config") else config


def check_one_width(config: Any, model_directory: Path) -> None:
    """Refuse models whose blocks lie in stages of unequal width, such as Swin, ConvNeXt and ResNet.

    Raises:
        ModelError: the model is one of these.
    """
    if isinstance(getattr(config, "depths", None), list | tuple):
        raise ModelError(
            f"the model in {model_directory} is of the kind {config.model_type!r}, whose blocks lie in stages of "
            "unequal width; fedpeft adapts transformers with one list of blocks: take ViT, DINOv2 (dinov2_small) or "
            "the vision tower of CLIP"
        )


def check_reads_texts(model_directory: Path) -> None:
    """Refuse models of images and texts, such as CLIP, for rows of texts: classification takes their vision tower.

    Raises:
        ModelError: the model is one of these.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(model_directory), local_files_only=True)
    if vision_of(config) is not config:
        raise ModelError(
            f"the model in {model_directory} ({config.model_type}) has two towers, and classification takes the one "
            "for images; for texts save the other as a folder of its own, of CLIP by "
            "CLIPTextModel.from_pretrained(MODEL).save_pretrained(FOLDER), with the tokenizer beside it"
        )


def image_rows(images: np.ndarray, model_directory: Path) -> tuple[np.ndarray, int]:
    """Images (rows, height, width) or (rows, height, width, 3) in [0, 255] as model input.

    Returns:
        float32 (rows, 3, side, side), enlarged to 4 x 4 patches and normalised as ImageNet; and the tokens per image.

    Raises:
        ModelError: the model has no `patch_size`, or stages: it is not a vision transformer.
    """
    from transformers import AutoConfig

    config = vision_of(AutoConfig.from_pretrained(str(model_directory), local_files_only=True))
    check_one_width(config, model_directory)
    patch = getattr(config, "patch_size", None)
    if patch is None:
        raise ModelError(f"the model in {model_directory} takes no images; choose a vision transformer (dinov2_small)")
    pixels = torch.from_numpy(np.asarray(images, dtype=np.float32)) / 255
    pixels = pixels[..., None].expand(*pixels.shape, 3) if pixels.ndim == 3 else pixels
    side = patch * PATCHES
    pixels = F.interpolate(pixels.permute(0, 3, 1, 2), size=(side, side), mode="bilinear", align_corners=False)
    mean, deviation = (torch.tensor(x).view(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    return ((pixels - mean) / deviation).numpy(), PATCHES * PATCHES + 1

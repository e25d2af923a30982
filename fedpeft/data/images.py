"""Conversion of images to a vision model's input, and the number of patches that it sees.

Images of up to 64 pixels a side become 4 x 4 patches and are enlarged if necessary. For larger images, the model sees
as many whole patches as fit into the shorter side, up to its own limit. A DINOv2 with patches of 14 pixels sees 16 x 16
patches of 224 pixels. The cost of an image is about proportional to its number of patches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.data.model_config import load_model_config
from fedpeft.data.rows import CLIP_AXES
from fedpeft.data.square_pictures import convert_to_model_input
from fedpeft.errors import ModelError

PATCHES = 4
"""Patches per side that small images are enlarged to: 4 x 4 patches and the class token make 17 tokens."""

SMALL = 64
"""Most pixels per side of an image that becomes `PATCHES` x `PATCHES` patches, whatever their size."""

AT_ONCE = 64
"""Number of images that are converted at a time, in fp32."""


def get_vision_config(config: Any) -> Any:
    """Return the configuration of the vision tower if the model also has a text tower; else `config` itself."""
    return config.vision_config if hasattr(config, "vision_config") and hasattr(config, "text_config") else config


def check_vision(config: Any, model_directory: Path) -> None:
    """Reject models that fedpeft can't adapt to images.

    These have blocks in stages of unequal width (Swin, ConvNeXt, ResNet), or do not take three channels.

    Raises:
        ModelError: the model is one of these.
    """
    channels = getattr(config, "num_channels", 3)
    if hasattr(config, "patch_size") and channels != 3:
        raise ModelError(
            f"FP4004 the model in {model_directory} reads images of {channels} channel(s) (num_channels of its "
            "config.json), but fedpeft gives 3 channels, also for grayscale images; create it with num_channels=3"
        )
    if isinstance(getattr(config, "depths", None), list | tuple):
        raise ModelError(
            f"FP4005 the model in {model_directory} is of type {config.model_type!r}, which has stages of unequal "
            "width; fedpeft adapts transformers with one list of blocks: choose ViT, DINOv2 (dinov2_small) or the "
            "vision tower of CLIP"
        )


def check_reads_texts(model_directory: Path) -> None:
    """Reject image models for texts, and models of both, such as CLIP, since classification uses their vision tower.

    Raises:
        ModelError: the model is one of these.
    """
    config = load_model_config(model_directory)
    if get_vision_config(config) is not config:
        raise ModelError(
            f"FP4006 the model in {model_directory} ({config.model_type}) has two towers, and classification uses the "
            "one for images; for texts, save the other as a folder of its own with the tokenizer, such as "
            "CLIPTextModel.from_pretrained(MODEL).save_pretrained(FOLDER) for CLIP"
        )
    if hasattr(config, "patch_size") and not hasattr(config, "vocab_size"):
        raise ModelError(
            f"FP4007 the model in {model_directory} ({config.model_type}) reads images, but the examples are texts; "
            "choose a text model, such as minilm"
        )


def count_patches(shorter: int, model_directory: Path) -> tuple[int, int]:
    """Return the patches per side for an image with `shorter` pixels at its shorter side, and the pixels of a patch.

    Raises:
        ModelError: the model has no `patch_size`, or has stages, so it is not a vision transformer.
    """
    config = get_vision_config(load_model_config(model_directory))
    check_vision(config, model_directory)
    patch = getattr(config, "patch_size", None)
    if patch is None:
        raise ModelError(
            f"FP4008 the model in {model_directory} takes no images; choose a vision transformer (dinov2_small)"
        )
    own = getattr(config, "image_size", None)
    largest = min(own) if isinstance(own, list | tuple) else own or shorter
    found = PATCHES if shorter <= SMALL else max(PATCHES, min(shorter, largest) // patch)
    return found, patch


def get_size(images: np.ndarray) -> tuple[int, int]:
    """Return height and width of images, or of the frames of clips, (rows, frames, height, width, 3)."""
    height, width = images.shape[2:4] if images.ndim == CLIP_AXES else images.shape[1:3]
    return height, width


def convert_images(images: np.ndarray, model_directory: Path) -> tuple[np.ndarray, int]:
    """Return images (rows, height, width) or (rows, height, width, 3), or clips, in [0, 255] as model input.

    Returns:
        float32 (rows, 3, side, side), or for clips (rows, frames, 3, side, side), scaled to the model's patches and
        normalized as for ImageNet; and the tokens per image or frame: its patches and the class token.

    Raises:
        ModelError: the model has no `patch_size`, or has stages, so it is not a vision transformer.
    """
    if images.ndim == CLIP_AXES:
        rows, frames = images.shape[:2]
        pixels, tokens = convert_images(images.reshape(rows * frames, *images.shape[2:]), model_directory)
        return pixels.reshape(rows, frames, *pixels.shape[1:]), tokens
    patches, patch = count_patches(min(images.shape[1:3]), model_directory)
    side = patch * patches
    made = np.empty((len(images), 3, side, side), np.float32)
    for start in range(0, len(images), AT_ONCE):  # all at once would take several times the memory
        made[start : start + AT_ONCE] = convert_to_model_input(images[start : start + AT_ONCE], side).numpy()
    return made, patches * patches + 1

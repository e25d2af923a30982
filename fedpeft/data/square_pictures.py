"""One picture to what a vision model is fed: eight bits a colour, a square, and that square in the model's pixels.

A copy of this file lies in the folder of every exported classifier of pictures: it imports numpy, PIL and torch only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)

AS_EVER = 28
"""Pixels a side up to which nothing is smoothed before it is made smaller: results of such data sets are committed."""

WHITE = 65535
"""Of a grey picture of 16 bits."""


def convert_to_eight_bits(picture: Any) -> Any:
    """A PIL image in RGB, eight bits a colour.

    Grey pictures of 16 bits (modes I;16 and, of some formats, I) are divided by 257: 65,535 is white, whatever the
    brightest pixel is. Grey pictures of fractions (mode F) are taken to reach from 0 to 1, and where one of their
    pixels is above 1, from 0 to 255.

    Raises:
        ValueError: numbers beyond these ranges; nobody could say which of them is white.
    """
    if not picture.mode.startswith("I") and picture.mode != "F":
        return picture.convert("RGB")
    from PIL import Image

    values = np.asarray(picture).astype(np.float64)  # PIL would cut them at 255
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    white = WHITE if picture.mode != "F" else 1 if high <= 1 else 255
    if not (low >= 0 and high <= white):  # a NaN is neither
        legal = "0 to 1 or 0 to 255" if picture.mode == "F" else "0 to 65,535"
        raise ValueError(
            f"its grey values reach from {low:g} to {high:g}, and only {legal} says what is white; scale it, and save "
            "it with 8 or 16 bits"
        )
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8)).convert("RGB")


def crop_to_square(picture: Any, side: int) -> np.ndarray:
    """A PIL image as uint8 (side, side, 3): turned as its camera says, scaled, and the middle cut out.

    Raises:
        ValueError: as `convert_to_eight_bits`.
        OSError: the file behind it is damaged.
    """
    from PIL import Image, ImageOps

    turned = convert_to_eight_bits(ImageOps.exif_transpose(picture))
    return np.asarray(ImageOps.fit(turned, (side, side), Image.Resampling.BILINEAR))


def convert_to_model_input(images: np.ndarray, side: int) -> Tensor:
    """Images (rows, height, width) or (rows, height, width, 3) in [0, 255] as float32 (rows, 3, side, side).

    Bilinear; what becomes smaller is smoothed first, as stripes would come out as others else. Normalised as ImageNet.
    """
    pixels = torch.from_numpy(np.asarray(images, dtype=np.float32)) / 255
    pixels = pixels[..., None].expand(*pixels.shape, 3) if pixels.ndim == 3 else pixels
    largest = max(images.shape[1:3])
    pixels = F.interpolate(
        pixels.permute(0, 3, 1, 2),
        size=(side, side),
        mode="bilinear",
        align_corners=False,
        antialias=largest > side and largest > AS_EVER,
    )
    mean, deviation = (torch.tensor(x).view(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    return (pixels - mean) / deviation

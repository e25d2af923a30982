"""Conversion of one image to a vision model's input: eight bits per color, a square, the model's size.

A copy of this file is in the folder of every exported image classifier, so it imports only numpy, PIL and torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)

AS_EVER = 28
"""Most pixels per side of images that are downscaled without smoothing; committed results depend on this."""

WHITE = 65535
"""Value of white in a grayscale image of 16 bits."""


def convert_to_eight_bits(picture: Any) -> Any:
    """Return a PIL image in RGB with eight bits per color.

    Grayscale images of 16 bits (modes I;16 and, for some formats, I) are divided by 257: 65,535 is white, whatever the
    brightest pixel is. Grayscale images of floats (mode F) range from 0 to 1, or from 0 to 255 if a pixel is above 1.

    Raises:
        ValueError: pixels are outside of these ranges, so the value of white is unknown.
    """
    if not picture.mode.startswith("I") and picture.mode != "F":
        return picture.convert("RGB")
    from PIL import Image

    values = np.asarray(picture).astype(np.float64)  # PIL would cut them at 255
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    white = WHITE
    if picture.mode == "F":
        white = 1 if high <= 1 else 255
    if not (low >= 0 and high <= white):  # a NaN is neither
        legal = "0 to 1 or 0 to 255" if picture.mode == "F" else "0 to 65,535"
        raise ValueError(
            f"its gray values range from {low:g} to {high:g}, but must range from {legal}; scale it, and save "
            "it with 8 or 16 bits"
        )
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8)).convert("RGB")


def crop_to_square(picture: Any, side: int) -> np.ndarray:
    """Return a PIL image as uint8 (side, side, 3): rotated by its metadata, scaled, and center-cropped.

    Raises:
        ValueError: see `convert_to_eight_bits`.
        OSError: the file behind it is damaged.
    """
    from PIL import Image, ImageOps

    turned = convert_to_eight_bits(ImageOps.exif_transpose(picture))
    return np.asarray(ImageOps.fit(turned, (side, side), Image.Resampling.BILINEAR))


def convert_to_model_input(images: np.ndarray, side: int) -> Tensor:
    """Return images (rows, height, width) or (rows, height, width, 3) in [0, 255] as float32 (rows, 3, side, side).

    They are scaled bilinearly, with smoothing before downscaling to avoid aliasing, and normalized as for ImageNet.
    """
    pixels = torch.from_numpy(np.asarray(images, dtype=np.float32)) / 255
    pixels = pixels[..., None].expand(*pixels.shape, 3) if pixels.ndim == 3 else pixels
    largest = max(images.shape[1:3])
    pixels = functional.interpolate(
        pixels.permute(0, 3, 1, 2),
        size=(side, side),
        mode="bilinear",
        align_corners=False,
        antialias=largest > side and largest > AS_EVER,
    )
    mean, deviation = (torch.tensor(x).view(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    return (pixels - mean) / deviation

"""Image preprocessing of an exported classifier, for `transformers.pipeline` and `AutoImageProcessor`.

transformers loads it with `trust_remote_code=True`. None of its own classes does the same: a run first scales images to
a square of the dataset's size, then to the model's. A copy of this file, next to one of `square_pictures.py`, is in the
folder of every exported image classifier. That is why it imports its neighbor relatively.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import BaseImageProcessor, BatchFeature

from .square_pictures import IMAGENET_DEVIATION, IMAGENET_MEAN, convert_to_model_input, crop_to_square


class SquarePictures(BaseImageProcessor):
    """Image preprocessing, the same as in training.

    Args:
        side: pixels per side that an image is first scaled and center-cropped to; at least 1.
        size: height and width of the model's input in pixels, which are equal.
        named: arguments of every image processor.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - as transformers declares it

    def __init__(self, side: int = 64, size: dict[str, int] | None = None, **named: Any) -> None:
        """Store the sizes, and ImageNet's mean and deviation for normalization."""
        super().__init__(**named)
        self.side = side
        self.size = size or {"height": side, "width": side}
        self.resample = 2  # bilinear
        self.rescale_factor = 1 / 255
        self.image_mean, self.image_std = list(IMAGENET_MEAN), list(IMAGENET_DEVIATION)

    def __call__(  # type: ignore[override]  # no option may differ from training
        self, images: Any, *_: Any, return_tensors: Any = None, **__: Any
    ) -> BatchFeature:
        """Return pixel_values float32 (images, 3, height, width) for a PIL image, or for several.

        Raises:
            ValueError: the range of an image's pixels is unknown.
        """
        given = list(images) if isinstance(images, list | tuple) else [images]
        squares = np.stack([crop_to_square(picture, self.side) for picture in given])
        made = torch.cat([convert_to_model_input(squares[i : i + 1], self.size["height"]) for i in range(len(squares))])
        return BatchFeature({"pixel_values": made}, tensor_type=return_tensors)

    preprocess = __call__

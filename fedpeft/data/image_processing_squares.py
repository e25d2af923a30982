"""What an exported classifier of pictures is fed, for `transformers.pipeline` and `AutoImageProcessor`.

transformers loads it with `trust_remote_code=True`. No class of transformers does the same: a run's pictures are
brought to a square of some pixels first, then to the model's own. A copy of this file lies in the folder of every
exported classifier of pictures, beside one of `square_pictures.py`; that is why it is imported from where this one is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import BaseImageProcessor, BatchFeature

from .square_pictures import IMAGENET_DEVIATION, IMAGENET_MEAN, convert_to_model_input, crop_to_square


class SquarePictures(BaseImageProcessor):
    """Pictures as a run fed them to its model.

    Args:
        side: pixels per side that a picture is brought to first, and its middle cut out; at least 1.
        size: pixels per side that the model is fed, as height and width, which are equal.
        named: those of every image processor.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - as transformers declares it

    def __init__(self, side: int = 64, size: dict[str, int] | None = None, **named: Any) -> None:
        super().__init__(**named)
        self.side = side
        self.size = size or {"height": side, "width": side}
        self.resample = 2  # bilinear
        self.rescale_factor = 1 / 255
        self.image_mean, self.image_std = list(IMAGENET_MEAN), list(IMAGENET_DEVIATION)

    def __call__(  # type: ignore[override]  # nothing can be asked for otherwise than in training
        self, images: Any, *_: Any, return_tensors: Any = None, **__: Any
    ) -> BatchFeature:
        """pixel_values float32 (pictures, 3, height, width) of a PIL image, or of several.

        Raises:
            ValueError: one has numbers that do not say what is white.
        """
        given = list(images) if isinstance(images, list | tuple) else [images]
        squares = np.stack([crop_to_square(picture, self.side) for picture in given])
        made = torch.cat([convert_to_model_input(squares[i : i + 1], self.size["height"]) for i in range(len(squares))])
        return BatchFeature({"pixel_values": made}, tensor_type=return_tensors)

    preprocess = __call__

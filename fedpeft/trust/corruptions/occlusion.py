"""A gray square at a random place of each image; the strength is its side, as a share of the image's.

Strengths are fedpeft's own choice, from hardly visible to hard to read, for the corruptions of ImageNet-C (Hendrycks
and Dietterich, ICLR 2019, arXiv 1903.12261).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.trust.corruption import Corruption, Images


@dataclass(frozen=True)
class Occlusion(Corruption):
    """Images with a hidden part."""

    kind: ClassVar[str] = "image"
    strengths: ClassVar[tuple[float, ...]] = (0.1, 0.2, 0.3, 0.4, 0.5)

    def corrupt_images(self, images: Images, strength: float, random: np.random.Generator) -> Images:
        """Hide a square of each image; see the module."""
        hidden = np.array(images)
        height, width = images.shape[1:3]
        tall, wide = max(1, round(strength * height)), max(1, round(strength * width))
        for image in hidden:
            top, left = int(random.integers(height - tall + 1)), int(random.integers(width - wide + 1))
            image[top : top + tall, left : left + wide] = 127
        return hidden


part = Occlusion

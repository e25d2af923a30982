"""Glare: the strength is added to every pixel, in units of the full range.

Strengths are fedpeft's own choice, from hardly visible to hard to read, for the corruptions of ImageNet-C (Hendrycks
and Dietterich, ICLR 2019, arXiv 1903.12261).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.trust.corruption import Corruption, Images, convert_to_pixels


@dataclass(frozen=True)
class Brightness(Corruption):
    """Brighter images."""

    kind: ClassVar[str] = "image"
    strengths: ClassVar[tuple[float, ...]] = (0.1, 0.2, 0.3, 0.4, 0.5)

    def corrupt_images(self, images: Images, strength: float, random: np.random.Generator) -> Images:
        """Brighten the images; see the module."""
        return convert_to_pixels(images / 255 + strength)


part = Brightness

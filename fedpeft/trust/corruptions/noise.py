"""Grain: Gaussian noise on every pixel; the strength is its standard deviation, in units of the full range.

Strengths are fedpeft's own choice, from hardly visible to hard to read, for the corruptions of ImageNet-C (Hendrycks
and Dietterich, ICLR 2019, arXiv 1903.12261).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.trust.corruption import Corruption, Images, convert_to_pixels


@dataclass(frozen=True)
class Noise(Corruption):
    """Gaussian noise."""

    kind: ClassVar[str] = "image"
    strengths: ClassVar[tuple[float, ...]] = (0.04, 0.08, 0.12, 0.18, 0.26)

    def corrupt_images(self, images: Images, strength: float, random: np.random.Generator) -> Images:
        """Add noise to the images; see the module."""
        return convert_to_pixels(images / 255 + random.normal(0, strength, images.shape))


part = Noise

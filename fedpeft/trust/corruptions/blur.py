"""Out of focus: a Gaussian filter whose standard deviation is the strength, as a share of the image's smaller side.

Strengths are fedpeft's own choice, from hardly visible to hard to read, for the corruptions of ImageNet-C (Hendrycks
and Dietterich, ICLR 2019, arXiv 1903.12261).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.trust.corruption import Corruption, Images, convert_to_pixels


@dataclass(frozen=True)
class Blur(Corruption):
    """Gaussian blur."""

    kind: ClassVar[str] = "image"
    strengths: ClassVar[tuple[float, ...]] = (0.02, 0.04, 0.06, 0.09, 0.13)

    def corrupt_images(self, images: Images, strength: float, random: np.random.Generator) -> Images:
        """Blur the images; see the module."""
        from scipy.ndimage import gaussian_filter

        deviation = strength * min(images.shape[1:3])
        return convert_to_pixels(gaussian_filter(images / 255, (0, deviation, deviation, 0)[: images.ndim]))


part = Blur

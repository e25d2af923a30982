"""Fog: every pixel is moved toward its image's mean; the strength is the share of contrast that is lost.

Strengths are fedpeft's own choice, from hardly visible to hard to read, for the corruptions of ImageNet-C (Hendrycks
and Dietterich, ICLR 2019, arXiv 1903.12261).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.trust.corruption import Corruption, Images, convert_to_pixels


@dataclass(frozen=True)
class Contrast(Corruption):
    """Less contrast."""

    kind: ClassVar[str] = "image"
    strengths: ClassVar[tuple[float, ...]] = (0.2, 0.4, 0.6, 0.75, 0.9)

    def corrupt_images(self, images: Images, strength: float, random: np.random.Generator) -> Images:
        """Reduce the contrast; see the module."""
        values = images / 255
        mean = values.reshape(len(values), -1).mean(1).reshape(-1, *[1] * (values.ndim - 1))
        return convert_to_pixels(mean + (values - mean) * (1 - strength))


part = Contrast

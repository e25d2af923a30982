"""Generated images without private content: dead leaves, discs and boxes that cover one another.

Sizes, places, angles and colors are drawn at random (Baradad et al., arXiv 2106.05963). The images have edges, corners
and surfaces as photographs do.
"""

from __future__ import annotations

import numpy as np

LEAVES = 24
"""Most leaves of an image."""

SMALLEST, LARGEST = 0.05, 0.6
"""Radius of a leaf relative to the image's side; its logarithm is uniform between these."""


def draw_dead_leaves(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Draw images, uint8 (count, side, side, 3); every other one is grayscale.

    Args:
        count: number of images.
        side: pixels per side.
        seed: equal seeds draw equal images.
    """
    random = np.random.Generator(np.random.Philox(key=seed))
    return np.stack([_draw_picture(side, gray=bool(number % 2), random=random) for number in range(count)])


def _draw_picture(side: int, gray: bool, random: np.random.Generator) -> np.ndarray:
    """Draw one image, uint8 (side, side, 3)."""
    y, x = np.mgrid[:side, :side]
    made = np.empty((side, side, 3), np.uint8)
    made[:] = _draw_color(gray, random)
    for _ in range(int(random.integers(1, LEAVES + 1))):
        radius = side * np.exp(random.uniform(np.log(SMALLEST), np.log(LARGEST)))
        below, right = y - random.uniform(0, side), x - random.uniform(0, side)
        angle, flat = random.uniform(0, np.pi), random.uniform(0.1, 1.0)
        along = right * np.cos(angle) + below * np.sin(angle)
        across = (below * np.cos(angle) - right * np.sin(angle)) / flat
        box = np.maximum(abs(along), abs(across)) < radius
        made[box if random.random() < 0.5 else np.hypot(below, right) < radius] = _draw_color(gray, random)
    return made


def _draw_color(gray: bool, random: np.random.Generator) -> np.ndarray:
    """Draw a leaf's color: three numbers from 0 to 255."""
    return np.repeat(random.integers(0, 256, 1), 3) if gray else random.integers(0, 256, 3)

"""Pictures that nobody took: dead leaves, discs and boxes that lie on one another (Baradad et al., arXiv 2106.05963).

Sizes, places, angles and colours are drawn at random. They show edges, corners and surfaces as photographs do, and hold
nothing of anybody.
"""

from __future__ import annotations

import numpy as np

LEAVES = 24
"""Most leaves of a picture."""

SMALLEST, LARGEST = 0.05, 0.6
"""Radius of a leaf, in sides of the picture; the logarithm is uniform between them."""


def draw_dead_leaves(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Pictures, uint8 (count, side, side, 3): every other one is grey.

    Args:
        count: of pictures.
        side: in pixels.
        seed: the same seed draws the same ones.
    """
    random = np.random.Generator(np.random.Philox(key=seed))
    return np.stack([_draw_picture(side, grey=bool(number % 2), random=random) for number in range(count)])


def _draw_picture(side: int, grey: bool, random: np.random.Generator) -> np.ndarray:
    """One, uint8 (side, side, 3)."""
    y, x = np.mgrid[:side, :side]
    made = np.empty((side, side, 3), np.uint8)
    made[:] = _draw_color(grey, random)
    for _ in range(int(random.integers(1, LEAVES + 1))):
        radius = side * np.exp(random.uniform(np.log(SMALLEST), np.log(LARGEST)))
        below, right = y - random.uniform(0, side), x - random.uniform(0, side)
        angle, flat = random.uniform(0, np.pi), random.uniform(0.1, 1.0)
        along = right * np.cos(angle) + below * np.sin(angle)
        across = (below * np.cos(angle) - right * np.sin(angle)) / flat
        box = np.maximum(abs(along), abs(across)) < radius
        made[box if random.random() < 0.5 else np.hypot(below, right) < radius] = _draw_color(grey, random)
    return made


def _draw_color(grey: bool, random: np.random.Generator) -> np.ndarray:
    """Of a leaf: three numbers from 0 to 255."""
    return np.repeat(random.integers(0, 256, 1), 3) if grey else random.integers(0, 256, 3)

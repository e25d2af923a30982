"""Clips of images in motion: an image moves across a larger canvas, or grows, behind a bar that stays where it is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOTIONS = ("left", "right", "up", "down", "zoom")

CANVAS = 1.6
"""Side of a clip, as a multiple of the image's."""

SMALLEST, LARGEST = 0.6, 1.4
"""Size of a growing image in the first and last frame, as a multiple of its own."""

GRAY = 128
"""Value of the bar's pixels."""


def get_side(image: NDArray[np.uint8]) -> int:
    """Return the pixels per side of a clip that an image, (height, width) or (height, width, 3), moves in."""
    side: int = round(CANVAS * max(image.shape[:2]))
    return side


def move_image(
    image: NDArray[np.uint8], motion: str, frames: int, hidden: float, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Return a clip, uint8 (frames, side, side, 3), of an image that moves from one end of the canvas to the other.

    "left" and "right" show the same frames in reverse order if the random numbers are equal, and so do "up" and "down".

    Args:
        image: uint8 (height, width) or (height, width, 3).
        motion: one of `MOTIONS`.
        frames: number of frames, at least 2.
        hidden: width of the bar as a share of the canvas, 0 to 0.9; 0: there is no bar.
        random: draws the place across the motion, and the bar's place and direction.
    """
    from PIL import Image

    side = get_side(image)
    picture = Image.fromarray(image).convert("RGB")
    across, bar, upright = random.random(), random.random(), bool(random.integers(2))
    clip = np.zeros((frames, side, side, 3), np.uint8)
    for i in range(frames):
        share = i / (frames - 1)
        shown = picture
        if motion == "zoom":
            factor = SMALLEST + (LARGEST - SMALLEST) * share
            size = [max(1, round(factor * pixels)) for pixels in picture.size]
            shown = picture.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        width, height = shown.size
        free = side - width, side - height
        along = share if motion in ("right", "down") else 1 - share
        places = {"zoom": (0.5, 0.5), "left": (along, across), "right": (along, across)}
        x, y = (round(share * pixels) for share, pixels in zip(places.get(motion, (across, along)), free, strict=True))
        clip[i, y : y + height, x : x + width] = np.asarray(shown)
    if thickness := round(hidden * side):
        start = round(bar * (side - thickness))
        strip = clip if upright else clip.swapaxes(1, 2)
        strip[:, :, start : start + thickness] = GRAY
    return clip

"""Drawn scenes of two things, each with a caption.

Examples are "a red circle left of a blue square" and "a green star above a red circle": two different things out of
`SHAPES` and `COLORS`, and one of two relations. "Right of" and "below" are left out, so each scene has one caption.
Place, size and background vary. Pillow draws at four times the size, and downscaling makes the edges smooth.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDE = 56
"""Pixels per side: four patches of 14, what `fedpeft.data.images` gives DINOv2."""

FINER = 4

SHAPES = ("circle", "square", "triangle", "star")
COLORS = {"red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 90, 220), "yellow": (240, 200, 20)}
RELATIONS = ("left of", "above")
PARTS = ("background", *SHAPES)
"""Labels of a scene's pixels, in the order of the masks' numbers; colors do not count."""

Fill = tuple[int, int, int] | int
"""Color of an image's pixels, or label of a mask's."""

Thing = tuple[str, str]
"""Color and shape."""


@dataclass(frozen=True)
class Scene:
    """A scene: the first thing is in the relation to the second."""

    first: Thing
    relation: str
    second: Thing

    @property
    def caption(self) -> str:
        """Scene in words."""
        return f"a {' '.join(self.first)} {self.relation} a {' '.join(self.second)}"


_CAPTION = re.compile(rf"a (\w+) (\w+) ({'|'.join(RELATIONS)}) a (\w+) (\w+)")


def parse_caption(caption: str) -> Scene | None:
    """Return the scene of a caption, with any colors and shapes, or None if it has another form."""
    if (found := _CAPTION.fullmatch(caption.strip())) is None:
        return None
    color, shape, relation, other_color, other_shape = found.groups()
    return Scene((color, shape), relation, (other_color, other_shape))


def list_scenes() -> list[Scene]:
    """Return all 480 scenes: two different ones of 16 things, in order, in one of two relations."""
    things = list(itertools.product(COLORS, SHAPES))
    return [
        Scene(first, relation, second) for first, second in itertools.permutations(things, 2) for relation in RELATIONS
    ]


def split_scenes(share: float, seed: int) -> tuple[list[Scene], list[Scene]]:
    """Return the scenes to train on, and those with pairs of things that training never shows together.

    A pair is held out in any order and relation. Each thing occurs in some training pair.

    Args:
        share: share of the 120 pairs that is held out, above 0 and at most 0.5.
        seed: decides which pairs these are.
    """
    things = list(itertools.product(COLORS, SHAPES))
    pairs = [frozenset(pair) for pair in itertools.combinations(things, 2)]
    order = np.random.default_rng([seed, 40]).permutation(len(pairs))
    apart = {pairs[i] for i in order[: max(1, round(share * len(pairs)))].tolist()}
    every = list_scenes()
    return (
        [s for s in every if frozenset((s.first, s.second)) not in apart],
        [s for s in every if frozenset((s.first, s.second)) in apart],
    )


def draw_scene(
    scene: Scene, random: np.random.Generator, side: int = SIDE
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw the scene as an image, uint8 (side, side, 3), and its mask, uint8 (side, side), positions in `PARTS`."""
    from PIL import Image, ImageDraw

    gray = int(random.integers(190, 245))
    image = Image.new("RGB", (side * FINER, side * FINER), (gray, gray, gray))
    mask = Image.new("L", image.size)
    pens = ImageDraw.Draw(image), ImageDraw.Draw(mask)
    scale = FINER * side / SIDE
    along, across = random.uniform(11, 15), random.uniform(20, 36, 2)  # centers: apart in the relation, free otherwise
    for i, (color, shape) in enumerate((scene.first, scene.second)):
        position = (along if i == 0 else SIDE - along, across[i])
        x, y = position if scene.relation == "left of" else position[::-1]
        radius = random.uniform(7.5, 10.0) * scale
        _draw(pens[0], shape, COLORS[color], (x * scale, y * scale), radius)
        _draw(pens[1], shape, PARTS.index(shape), (x * scale, y * scale), radius)
    small = image.resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, np.uint8), np.asarray(mask, np.uint8)[FINER // 2 :: FINER, FINER // 2 :: FINER]


def _draw(
    pen: object, shape: str, color: tuple[int, int, int] | int, center: tuple[float, float], radius: float
) -> None:
    x, y = center
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)  # type: ignore[attr-defined]
        return
    if shape == "square":
        half = 0.85 * radius
        pen.rectangle((x - half, y - half, x + half, y + half), fill=color)  # type: ignore[attr-defined]
        return
    corners, inner = (3, 1.0) if shape == "triangle" else (10, 0.45)
    points = []
    for k in range(corners):
        length = radius * (inner if k % 2 and corners == 10 else 1.15)
        angle = 2 * math.pi * k / corners - math.pi / 2
        points.append((x + length * math.cos(angle), y + length * math.sin(angle)))
    pen.polygon(points, fill=color)  # type: ignore[attr-defined]

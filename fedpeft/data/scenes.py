"""Scenes of two things, drawn, with a sentence that says what is where.

"a red circle left of a blue square", "a green star above a red circle": two different things out of `SHAPES` and
`COLOURS`, and one of two relations. Right of and below are left out: each scene has one caption. Place and size vary,
and the background. Drawn with Pillow at four times the size and brought down, so that edges are smooth.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDE = 56
"""Pixels: four patches of 14, what `fedpeft.data.images` gives DINOv2."""

FINER = 4

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {"red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 90, 220), "yellow": (240, 200, 20)}
RELATIONS = ("left of", "above")

Thing = tuple[str, str]
"""Colour and shape."""


@dataclass(frozen=True)
class Scene:
    """What is to be seen: the first thing stands in the relation to the second."""

    first: Thing
    relation: str
    second: Thing

    @property
    def caption(self) -> str:
        """In words."""
        return f"a {' '.join(self.first)} {self.relation} a {' '.join(self.second)}"


_CAPTION = re.compile(rf"a (\w+) (\w+) ({'|'.join(RELATIONS)}) a (\w+) (\w+)")


def parse_caption(caption: str) -> Scene | None:
    """The scene that a caption tells of, of whatever colours and shapes; None: it has another form."""
    if (found := _CAPTION.fullmatch(caption.strip())) is None:
        return None
    colour, shape, relation, other_colour, other_shape = found.groups()
    return Scene((colour, shape), relation, (other_colour, other_shape))


def list_scenes() -> list[Scene]:
    """All of them: 16 things, two different ones in order, two relations: 480."""
    things = list(itertools.product(COLOURS, SHAPES))
    return [
        Scene(first, relation, second) for first, second in itertools.permutations(things, 2) for relation in RELATIONS
    ]


def split_scenes(share: float, seed: int) -> tuple[list[Scene], list[Scene]]:
    """The scenes to learn from, and those of combinations that are never seen together: pairs of things, whatever the
    order and the relation. Every thing is in some pair of the former.

    Args:
        share: of the 120 pairs that are held out, above 0 and at most 0.5.
    """
    things = list(itertools.product(COLOURS, SHAPES))
    pairs = [frozenset(pair) for pair in itertools.combinations(things, 2)]
    order = np.random.default_rng([seed, 40]).permutation(len(pairs))
    apart = {pairs[i] for i in order[: max(1, round(share * len(pairs)))].tolist()}
    every = list_scenes()
    return (
        [s for s in every if frozenset((s.first, s.second)) not in apart],
        [s for s in every if frozenset((s.first, s.second)) in apart],
    )


def draw_scene(scene: Scene, random: np.random.Generator) -> NDArray[np.uint8]:
    """The scene as an image, (56, 56, 3)."""
    from PIL import Image, ImageDraw

    grey = int(random.integers(190, 245))
    image = Image.new("RGB", (SIDE * FINER, SIDE * FINER), (grey, grey, grey))
    pen = ImageDraw.Draw(image)
    along, across = random.uniform(11, 15), random.uniform(20, 36, 2)  # centres: apart in the relation, free otherwise
    for i, (colour, shape) in enumerate((scene.first, scene.second)):
        position = (along if i == 0 else SIDE - along, across[i])
        x, y = position if scene.relation == "left of" else position[::-1]
        _draw(pen, shape, COLOURS[colour], (x * FINER, y * FINER), random.uniform(7.5, 10.0) * FINER)
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small, np.uint8)


def _draw(pen: object, shape: str, colour: tuple[int, int, int], centre: tuple[float, float], radius: float) -> None:
    x, y = centre
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)  # type: ignore[attr-defined]
        return
    if shape == "square":
        half = 0.85 * radius
        pen.rectangle((x - half, y - half, x + half, y + half), fill=colour)  # type: ignore[attr-defined]
        return
    corners, inner = (3, 1.0) if shape == "triangle" else (10, 0.45)
    points = []
    for k in range(corners):
        length = radius * (inner if k % 2 and corners == 10 else 1.15)
        angle = 2 * math.pi * k / corners - math.pi / 2
        points.append((x + length * math.cos(angle), y + length * math.sin(angle)))
    pen.polygon(points, fill=colour)  # type: ignore[attr-defined]

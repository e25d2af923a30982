"""What may happen to a row on its way: texts are mistyped, images are blurred. A model that is trusted stands it."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedpeft.families import CORRUPTIONS as CORRUPTIONS
from fedpeft.parts import name_of

Images = NDArray[np.uint8]

Neighbours = Callable[[str], str]
"""A word that means about the same; the word itself where nothing is known."""


class Corruption:
    """One kind. Subclasses are frozen dataclasses without settings."""

    kind: ClassVar[str] = "text"
    """Of the rows: "text" or "image"."""

    strengths: ClassVar[tuple[float, ...]] = (0.05, 0.1, 0.2)
    """From weak to strong; of texts the chance of each word to be changed."""

    @property
    def name(self) -> str:
        """As its file."""
        return name_of(type(self))

    def corrupt_text(self, text: str, strength: float, random: np.random.Generator, near: Neighbours) -> str:
        """`text` with words changed; `near`: what knows of words of like meaning."""
        raise NotImplementedError

    def corrupt_images(self, images: Images, strength: float, random: np.random.Generator) -> Images:
        """uint8 (rows, height, width) or (rows, height, width, 3), changed, in the same shape."""
        raise NotImplementedError


class WordByWord(Corruption):
    """Changes each word by itself, with a chance; what lies between words stays."""

    @abstractmethod
    def corrupt_word(self, word: str, random: np.random.Generator, near: Neighbours) -> str:
        """The word, changed."""

    def corrupt_text(self, text: str, strength: float, random: np.random.Generator, near: Neighbours) -> str:
        """See `Corruption`."""
        pieces = re.split(r"(\s+)", text)
        for place in range(0, len(pieces), 2):
            if pieces[place] and random.random() < strength:
                pieces[place] = self.corrupt_word(pieces[place], random, near)
        return "".join(pieces)


def list_corruptions(kind: str) -> list[Corruption]:
    """Those of texts, or of images."""
    made = (CORRUPTIONS.build(name) for name in CORRUPTIONS.own_names)
    return [corruption for corruption in made if corruption.kind == kind]


def corrupt(
    inputs: Sequence[str] | NDArray[np.generic],
    corruption: Corruption,
    strength: float,
    random: np.random.Generator,
    near: Neighbours = lambda word: word,
) -> Sequence[str] | Images:
    """All rows, changed."""
    if corruption.kind == "image":
        return corruption.corrupt_images(np.asarray(inputs, dtype=np.uint8), strength, random)
    return [corruption.corrupt_text(str(text), strength, random, near) for text in inputs]


def convert_to_pixels(values: NDArray[np.float64]) -> Images:
    """Numbers of 0 to 1 as uint8, cut off at both ends."""
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)

"""Corruptions of inputs for robustness tests: texts are mistyped, images are blurred."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedpeft.parts import name_of
from fedpeft.parts.families import CORRUPTIONS

Images = NDArray[np.uint8]

FindSynonym = Callable[[str], str]
"""A function from a word to one of about the same meaning, or to the word itself if none is known."""


class Corruption:
    """A type of corruption. Subclasses are frozen dataclasses without settings."""

    kind: ClassVar[str] = "text"
    """Kind of input: "text" or "image"."""

    needs_one_of: ClassVar[tuple[str, ...]] = ("corrupt_text", "corrupt_images")
    """Methods of which each corruption defines at least one."""

    strengths: ClassVar[tuple[float, ...]] = (0.05, 0.1, 0.2)
    """Strengths from weak to strong; for texts the probability that a word is changed."""

    @property
    def name(self) -> str:
        """Name of the corruption: the name of its file."""
        return name_of(type(self))

    def corrupt_text(self, text: str, strength: float, random: np.random.Generator, near: FindSynonym) -> str:
        """Return `text` with changed words; `near` finds words of similar meaning."""
        raise NotImplementedError

    def corrupt_images(self, images: Images, strength: float, random: np.random.Generator) -> Images:
        """Return changed images; uint8 (rows, height, width) or (rows, height, width, 3), as the input."""
        raise NotImplementedError


class WordByWord(Corruption):
    """A corruption that changes each word independently, with a probability; spaces between words stay."""

    @abstractmethod
    def corrupt_word(self, word: str, random: np.random.Generator, near: FindSynonym) -> str:
        """Return the word, changed."""

    def corrupt_text(self, text: str, strength: float, random: np.random.Generator, near: FindSynonym) -> str:
        """Change each word with probability `strength`; see `Corruption`."""
        pieces = re.split(r"(\s+)", text)
        for place in range(0, len(pieces), 2):
            if pieces[place] and random.random() < strength:
                pieces[place] = self.corrupt_word(pieces[place], random, near)
        return "".join(pieces)


def list_corruptions(kind: str) -> list[Corruption]:
    """Return the corruptions of a kind, "text" or "image"."""
    corruptions = (CORRUPTIONS.build(name) for name in CORRUPTIONS.own_names)
    return [corruption for corruption in corruptions if corruption.kind == kind]


def corrupt(
    inputs: Sequence[str] | NDArray[np.generic],
    corruption: Corruption,
    strength: float,
    random: np.random.Generator,
    near: FindSynonym = lambda word: word,
) -> Sequence[str] | Images:
    """Corrupt all inputs."""
    if corruption.kind == "image":
        return corruption.corrupt_images(np.asarray(inputs, dtype=np.uint8), strength, random)
    return [corruption.corrupt_text(str(text), strength, random, near) for text in inputs]


def summarize_draws(
    strength: float,
    draws: Sequence[NDArray[np.generic]],
    clean: NDArray[np.generic],
    right: NDArray[np.bool_],
    is_new: NDArray[np.bool_] | None = None,
) -> dict[str, float]:
    """Return the measures of some draws of a change, for summary.json.

    They are the accuracy (mean over draws, then over examples), the accuracy if the worst draw counts for each example,
    and the share of answers that stay.

    Args:
        strength: strength of the change.
        draws: answers of each draw, (rows,).
        clean: answers to unchanged examples, (rows,).
        right: whether the answers of the draws are right, (draws, rows).
        is_new: whether a draw of an example repeats no earlier one, and so counts, (draws, rows); None: all do.
    """
    weights = np.ones(right.shape) if is_new is None else is_new / is_new.mean(0)
    return {
        "strength": strength,
        "accuracy": float((weights * right).mean()),
        "worst": float(np.logical_and.reduce(right, axis=0).mean()),
        "unchanged": float(np.mean([w * (draw == clean) for w, draw in zip(weights, draws, strict=True)])),
    }


def convert_to_pixels(values: NDArray[np.float64]) -> Images:
    """Convert numbers of 0 to 1 to uint8; others are clipped."""
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)

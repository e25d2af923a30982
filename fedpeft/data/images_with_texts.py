"""Defaults for datasets of images with texts or masks, whose task is one of their settings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedpeft.parts.spec import parse_spec

PATCH_LABELS = "patch_labels"


def find_held_sides(images: NDArray[np.generic], texts: Sequence[str]) -> NDArray[np.bool_]:
    """Return whether each example has its image, which is not all zeros, and its text: bool (rows, 2)."""
    shown = images.any(tuple(range(1, images.ndim)))
    return np.stack([shown, np.fromiter(map(bool, texts), bool, len(images))], 1)


def is_captioning(task: str) -> bool:
    """Return whether the task generates captions, instead of matching images and texts."""
    return parse_spec(task).name == "captions"


def is_patch_labeling(task: str) -> bool:
    """Return whether the task labels the patches of an image."""
    return parse_spec(task).name == PATCH_LABELS


def choose_model(task: str) -> str:
    """Return the default base model."""
    if is_patch_labeling(task):
        return "dinov2_small"
    return "towers(text=smollm2)" if is_captioning(task) else "towers"


def choose_start(task: str) -> str | None:
    """Return the default start of the head.

    For captioning, the connector starts as a regression onto text embeddings. A head on patches starts at zero, since
    the closed form is for whole examples.
    """
    if is_patch_labeling(task):
        return "zero"
    return "ridge(scale=1.0)" if is_captioning(task) else None

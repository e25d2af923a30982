"""Masks that label the pixels of images, and the labels of patches that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.tagged_words import IGNORED
from fedpeft.errors import DataError

VOID = 255
"""The label of pixels that do not count, as in the masks of PASCAL VOC."""


def list_labels(masks: NDArray[np.uint8], name: str) -> tuple[str, ...]:
    """Return the names of labels that nobody has named: the numbers from 0 to the largest in the masks.

    Raises:
        DataError: the masks have fewer than two labels.
    """
    seen = np.unique(masks[masks != VOID])
    if len(seen) < 2:
        raise DataError(
            f"FP3416 the training masks of {name} contain {len(seen)} label(s); give at least two: 0, 1, ... are "
            f"labels, and {VOID} marks pixels that do not count"
        )
    return tuple(map(str, range(int(seen[-1]) + 1)))


def check_masks(inputs: Any, masks: NDArray[np.uint8] | None, names: Sequence[str], which: str) -> None:
    """Refuse masks of another size than the images, or with labels that have no name.

    Args:
        inputs: the images, uint8 (rows, height, width) or (rows, height, width, 3).
        masks: labels of pixels; None: there are none.
        names: names of the labels, at most `VOID`.
        which: what messages call the examples.

    Raises:
        DataError: says what is wrong.
    """
    if masks is None or not isinstance(inputs, np.ndarray) or masks.dtype != np.uint8:
        raise DataError(f"FP3417 {which} have no masks of uint8, which patch_labels needs; give Rows(masks=...)")
    if masks.shape != inputs.shape[:3]:
        raise DataError(f"FP3418 {which} have masks of {masks.shape[1:]} pixels, but images of {inputs.shape[1:3]}")
    wrong = np.setdiff1d(np.unique(masks), [*range(min(len(names), VOID)), VOID])
    if len(wrong):
        raise DataError(
            f"FP3419 {which} have masks with the label {wrong[0]}, but {len(names)} names allow only 0 to "
            f"{len(names) - 1}, and {VOID} for none"
        )


def label_patches(masks: NDArray[np.uint8], across: int) -> NDArray[np.int64]:
    """Return the most frequent label of each patch's pixels; of equally frequent ones, the smallest.

    Args:
        masks: labels of pixels, uint8 (rows, height, width).
        across: patches along a side, at most as many as pixels.

    Returns:
        int64 (rows, across * across), from the upper left, row by row; `IGNORED` if most pixels are void.

    Raises:
        DataError: a mask has fewer pixels than patches along a side.
    """
    height, width = masks.shape[1:]
    if min(height, width) < across:
        raise DataError(
            f"FP3421 masks of {height} x {width} pixels can't label {across} x {across} patches; give larger images"
        )
    labels, known = np.empty((len(masks), across, across), np.int64), np.unique(masks).tolist() or [0]
    rows, columns = ([round(i * size / across) for i in range(across + 1)] for size in (height, width))
    for i in range(across):
        for j in range(across):
            cell = masks[:, rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
            counts = np.stack([(cell == label).sum((1, 2)) for label in known], 1)
            labels[:, i, j] = np.array(known)[counts.argmax(1)]
    labels[labels == VOID] = IGNORED
    return labels.reshape(len(masks), across**2)

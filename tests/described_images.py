"""Folders of small images with a text and a mask beside each, for tests."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 16
LABELS = ("ground", "square")


def draw_described(folder, count, seed=0):
    """Write images with a bright square on one side: NAME.png, NAME.txt and NAME.mask.png, uint8 labels."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = random.integers(20, 90, (SIDE, SIDE, 3)).astype(np.uint8)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        place = slice(0, 8) if i % 2 else slice(8, 16)
        image[4:12, place], mask[4:12, place] = 220, 1
        Image.fromarray(image).save(folder / f"{i:02d}.png")
        Image.fromarray(mask).save(folder / f"{i:02d}.mask.png")
        (folder / f"{i:02d}.txt").write_text("a square left of" if i % 2 else "a square above")
    return folder

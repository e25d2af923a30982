"""Clips made of another dataset's images in motion: `clips(of=fashion_mnist)`, `clips(of=digits, label=motion)`.

The images are real, their motion is generated: each moves left, right, up or down across a larger canvas, or grows. A
bar that stays where it is hides a part, so that several frames show more than one. Labels are the images' classes, or
the motions.

A model sees the mean over frames, which has no order. Clips to the left and to the right show the same frames in
reverse, and so do clips up and down. So `label=motion` can't be learned beyond 3 of 5: it measures this limit. Equal
settings give equal clips. The images' license is that of their dataset.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.data.client_rows import MOST_FRAMES
from fedpeft.data.moving_images import MOTIONS, get_side, move_image
from fedpeft.data.rows import Dataset, Rows, limit_rows
from fedpeft.errors import ConfigError
from fedpeft.parts import setting
from fedpeft.parts.families import DATASETS


@dataclass(frozen=True)
class Clips:
    """Images in motion, as clips of frames."""

    of: str = setting("digits", "the dataset of images with classes, such as digits or fashion_mnist", nested=DATASETS)
    frames: int = setting(6, "frames of each clip", low=2, high=MOST_FRAMES)
    label: str = setting("class", "what is learned: the image's class, or its motion", choices=("class", "motion"))
    hidden: float = setting(0.3, "width of the bar that hides a part, as a share of the clip's", low=0.0, high=0.9)
    rows: int = setting(600, "training clips, each of another image", low=20, high=60_000)
    test_rows: int = setting(300, "test clips", low=10, high=10_000)
    seed: int = setting(0, "seed of the motions; not the run's seed", low=0)

    task_in_rows: ClassVar[bool] = False

    def count_frames(self) -> int:
        """Return the number of frames of each clip."""
        return self.frames

    def load(self) -> Dataset:
        """Return clips uint8 (examples, frames, side, side, 3) with their classes or motions.

        Raises:
            ConfigError: the dataset has no images with classes.
            FedpeftError: it can't be loaded.
        """
        images = DATASETS.build(self.of).load()
        if images.kind != "image" or not images.is_classification or images.tasks is not None:
            raise ConfigError(
                f"FP1736 clips move images with classes, and {self.of} holds {images.kind}s for {images.task}; use "
                "of=digits or of=fashion_mnist"
            )
        train, test = limit_rows(images.train, self.rows), limit_rows(images.test, self.test_rows)
        validation = None if images.validation is None else self._move(images.validation, 2)
        return dataclasses.replace(
            images,
            name="clips",
            kind="clip",
            train=self._move(train, 0),
            test=self._move(test, 1),
            validation=validation,
            label_names=MOTIONS if self.label == "motion" else images.label_names,
            raters=None,
            notes=(*images.notes, "synthetic: the motions are generated, the images are those of the dataset"),
        )

    def _move(self, rows: Rows, part: int) -> Rows:
        """Return a clip of each image; motions are equally frequent, to within one."""
        random = np.random.default_rng([self.seed, 43, part])
        motions = random.permutation(np.resize(np.arange(len(MOTIONS)), len(rows))).astype(np.int64)
        images = np.asarray(rows.inputs).astype(np.uint8)
        side = get_side(images[0])
        clips = np.empty((len(rows), self.frames, side, side, 3), np.uint8)
        for i, (image, motion) in enumerate(zip(images, motions.tolist(), strict=True)):
            clips[i] = move_image(image, MOTIONS[motion], self.frames, self.hidden, random)
        return Rows(clips, motions if self.label == "motion" else rows.labels, rows.owners)


part = Clips

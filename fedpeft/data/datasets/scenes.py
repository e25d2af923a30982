"""Drawn scenes with captions and masks: two things, their colors and their arrangement.

`fedpeft.data.scenes` draws them. Test examples show pairs of things that no training example shows together, so a model
must combine what it learned about each thing. Validation examples show the training pairs. For `patch_labels`, a
pixel's label is the shape that it belongs to.

Owners are generated: each has an equal share of the examples, drawn alike. A share of the owners has images only, or
texts only. Nothing is fetched; equal settings give equal examples. No license applies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.data.images_with_texts import choose_model, choose_start, is_patch_labeling
from fedpeft.data.rows import Dataset, Rows
from fedpeft.data.scenes import PARTS, SIDE, Scene, draw_scene, split_scenes
from fedpeft.errors import ConfigError
from fedpeft.parts import setting
from fedpeft.parts.families import TASKS


@dataclass(frozen=True)
class Scenes:
    """Images of two things, with captions."""

    rows: int = setting(1200, "training examples", low=20, high=200_000)
    validation_rows: int = setting(200, "validation examples", low=2, high=20_000)
    test_rows: int = setting(240, "test examples, of unseen combinations", low=2, high=20_000)
    owners: int = setting(20, "number of owners", low=1, high=10_000)
    unseen: float = setting(0.25, "share of the pairs of things that only test examples show", above=0.0, high=0.5)
    images_only: float = setting(0.0, "share of the owners that have no texts", low=0.0, high=1.0)
    texts_only: float = setting(0.0, "share of the owners that have no images", low=0.0, high=1.0)
    seed: int = setting(0, "seed of the scenes; not the run's seed", low=0)
    task: str = setting(
        "towers", "towers, captions or patch_labels, with its settings: towers(connector=mlp)", nested=TASKS
    )
    side: int = setting(SIDE, "pixels per side; 112 for 8 x 8 patches of DINOv2", low=SIDE, high=448)

    suited_partition: ClassVar[str] = "natural"
    training_settings: ClassVar[tuple[str, ...]] = ("rows", "owners", "validation_rows", "images_only", "texts_only")

    @property
    def suited_head(self) -> str | None:
        """Start of the head that suits the task."""
        return choose_start(self.task)

    def load(self) -> Dataset:
        """Return images uint8 (examples, side, side, 3) with texts, or with masks; labels are captions.

        Raises:
            ConfigError: `images_only` and `texts_only` exceed 1 together, or the task has masks.
        """
        masked = is_patch_labeling(self.task)
        if masked and (self.images_only or self.texts_only):
            raise ConfigError(
                f"FP1733 {self.task} has masks instead of texts; leave images_only and texts_only out of scenes"
            )
        if self.images_only + self.texts_only > 1:
            raise ConfigError(
                f"FP1095 images_only={self.images_only:g} and texts_only={self.texts_only:g} are more than all owners; "
                "give shares that add up to at most 1"
            )
        seen, unseen = split_scenes(self.unseen, self.seed)
        every = {scene: i for i, scene in enumerate([*seen, *unseen])}
        train = self._draw_rows(seen, every, self.rows, 0)
        train = train if masked else self._make_one_sided(train)
        validation, test = (
            self._draw_rows(of, every, count, part)
            for part, (of, count) in enumerate(((seen, self.validation_rows), (unseen, self.test_rows)), start=1)
        )
        names, model = PARTS if masked else None, choose_model(self.task)
        return Dataset("scenes", "image", self.task, train, test, names, model, validation=validation)

    def _draw_rows(self, of: Sequence[Scene], every: dict[Scene, int], count: int, part: int) -> Rows:
        """Return `count` examples in random order; the scenes' frequencies differ by at most one."""
        random = np.random.default_rng([self.seed, 41, part])
        chosen = [of[i] for i in random.permutation(np.resize(random.permutation(len(of)), count)).tolist()]
        images, masks = map(np.stack, zip(*(draw_scene(scene, random, self.side) for scene in chosen), strict=True))
        owners = np.array([f"owner {i % self.owners:04d}" for i in range(count)])
        if is_patch_labeling(self.task):
            return Rows(images, None, owners, masks=masks)
        return Rows(images, np.array([every[s] for s in chosen]), owners, texts=[scene.caption for scene in chosen])

    def _make_one_sided(self, rows: Rows) -> Rows:
        """Return the rows with zeroed images and empty texts for owners that lack these."""
        images, texts = np.array(rows.inputs), list(rows.texts or ())
        order = np.random.default_rng([self.seed, 42]).permutation(self.owners).tolist()
        blind = round(self.texts_only * self.owners)
        no_images = set(order[:blind])
        no_texts = set(order[blind : blind + round(self.images_only * self.owners)])
        assert images.shape[1:] == (self.side, self.side, 3)
        for i in range(len(rows)):
            if i % self.owners in no_images:
                images[i] = 0
            elif i % self.owners in no_texts:
                texts[i] = ""
        return Rows(images, rows.labels, rows.owners, texts=texts)


part = Scenes

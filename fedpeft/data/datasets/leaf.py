"""Datasets of LEAF from your own download: `leaf:FOLDER`, with LEAF's users as owners.

FOLDER is data/NAME/data, after LEAF's preprocess.sh has written the folders train and test into it. The dataset is
recognized by its first example:

    FEMNIST      images of 28 x 28 pixels in 62 classes
    CelebA       images, smiling or not; they are read from raw/img_align_celeba in FOLDER, or from `images`
    Sent140      tweets, negative or positive
    Shakespeare  80 characters and the one that follows, as the class
    Reddit       comments, for causal language modeling

A single file of LEAF, or a folder of them such as all_data, has no test examples: a share of each class (of each user
without classes) is held out. Nothing is fetched. Caldas et al. 2018, arXiv:1812.01097; github.com/TalwalkarLab/leaf has
the scripts, and each dataset has a license of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import ClassVar

from fedpeft.data import user_rows
from fedpeft.data.image_folders import read_pixels
from fedpeft.data.incomplete_rows import INCOMPLETE, REFUSE
from fedpeft.data.label_columns import sort_labels
from fedpeft.data.leaf_files import (
    LeafExample,
    LeafLayout,
    decode_pixels,
    find_layout,
    iterate_examples,
    iterate_records,
)
from fedpeft.data.record_folders import find_splits
from fedpeft.data.rows import Dataset
from fedpeft.errors import DataError
from fedpeft.parts import setting

IMAGES = Path("raw") / "img_align_celeba"
"""CelebA's folder of images below LEAF's data folder."""


@dataclass(frozen=True)
class Leaf:
    """Examples of LEAF, by user."""

    argument: ClassVar[str] = "path"
    suited_partition: ClassVar[str] = "natural"
    task_in_rows: ClassVar[bool] = True

    path: str = setting(dataclasses.MISSING, "LEAF's folder data/NAME/data, or one of its .json files", path=True)
    images: str | None = setting(None, "folder of CelebA's images; None: raw/img_align_celeba in `path`", path=True)
    side: int = setting(84, "pixels per side that CelebA's images are scaled to", low=8, high=512)
    incomplete: str = setting(
        REFUSE, "examples with an empty text; drop: leave them out and report their number", choices=INCOMPLETE
    )
    test_fraction: float = setting(
        0.2, "share of the examples held out for test if there is no folder test", above=0.0, high=0.9
    )
    seed: int = setting(0, "seed of the held-out share; not the run's seed", low=0)

    def load(self) -> Dataset:
        """Return the examples, checked.

        Raises:
            DataError: a file can't be read or has another layout, or an image is missing.
        """
        splits = find_splits(Path(self.path).expanduser())
        examples = iterate_examples(splits.train)
        first = next(examples, None)
        if first is None:
            raise DataError(f"FP3028 {splits.train} has no rows")
        layout = find_layout(first)
        train = self._read_table(splits.train, chain([first], examples), layout)
        validation, test = (
            None if path is None else self._read_table(path, iterate_examples(path), layout)
            for path in (splits.validation, splits.test)
        )
        tables = [table for table in (train, validation, test) if table is not None]
        names = layout.names
        if names is None and layout.read_label is not None:  # a character may occur in test examples only
            names = sort_labels({value for table in tables if table.labels for value in table.labels.values})
        known = user_rows.KnownLabels(names=names)
        name = f"leaf {layout.dataset}"
        made = user_rows.build_dataset(name, train, test, self.test_fraction, self.seed, validation, known)
        note = f"read as {layout.dataset} of LEAF: {layout.content}"
        made = dataclasses.replace(made, notes=(*made.notes, note))
        if layout.pictures == "pixels":
            return user_rows.build_picture_dataset(made, decode_pixels)
        if layout.pictures == "files":
            return user_rows.build_picture_dataset(made, lambda files: read_pixels(files, self.side))
        return made

    def _read_table(self, path: Path, examples: Iterator[LeafExample], layout: LeafLayout) -> user_rows.Table:
        label = None if layout.read_label is None else "label"
        names = user_rows.Names("text", label, "owner", "leaf(...)", "class", self.incomplete)
        records = iterate_records(examples, layout)
        if layout.pictures == "files":
            folder = Path(self.images or Path(self.path) / IMAGES).expanduser()
            if not folder.is_dir():
                raise DataError(
                    f"FP3204 there is no folder {folder} with CelebA's images; name it: leaf(..., images='FOLDER')"
                )
            records = ((place, record | {"text": str(folder / record["text"])}) for place, record in records)
        return user_rows.read(str(path), records, names)


part = Leaf

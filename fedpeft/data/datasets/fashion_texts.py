"""Fashion-MNIST with the names of its classes as texts: "a photo of a sneaker".

Ten texts for all images: from image to text it is classification by words, from text to image a search. Images of one
class are no negatives of each other's text. Files and licence as of `fashion_mnist`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.data.datasets.fashion_mnist import CLASSES, FashionMnist
from fedpeft.data.images_with_texts import choose_model, choose_start
from fedpeft.data.rows import Dataset, Rows
from fedpeft.families import TASKS
from fedpeft.parts import setting


@dataclass(frozen=True)
class FashionTexts:
    """Clothes, as small grey images, and what they are called."""

    suited_partition: ClassVar[str] = "iid"

    path: str | None = setting(None, "folder with the IDX files; None: the Debian package")
    rows: int = setting(6000, "the first so many training images", low=1000, high=60_000)
    test_rows: int = setting(1000, "the first so many test images", low=100, high=10_000)
    task: str = setting("towers", "towers or captions, with its settings: towers(connector=mlp)", nested=TASKS)

    @property
    def suited_head(self) -> str | None:
        """The task's."""
        return choose_start(self.task)

    def load(self) -> Dataset:
        """Images uint8 (rows, 28, 28) with texts; labels are classes.

        Raises:
            AssetError: the files are not there and can't be fetched.
            DataError: they are not what they should be.
        """
        found = FashionMnist(path=self.path, rows=self.rows, test_rows=self.test_rows).load()
        train, test = (add_sentences(rows) for rows in (found.train, found.test))
        return Dataset("fashion_texts", "image", self.task, train, test, None, choose_model(self.task))


def add_sentences(rows: Rows) -> Rows:
    """Rows with a sentence that names their class."""
    labels = np.asarray(rows.labels).tolist()
    return Rows(rows.inputs, rows.labels, rows.owners, texts=[write_sentence(CLASSES[label]) for label in labels])


def write_sentence(name: str) -> str:
    """What a text says of a class."""
    article = "" if name == "trouser" else "an " if name[0] in "aeiou" else "a "
    return f"a photo of {article}{'trousers' if name == 'trouser' else name}"


part = FashionTexts

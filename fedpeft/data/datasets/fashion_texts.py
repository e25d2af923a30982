"""Fashion-MNIST with the names of its classes as texts: "a photo of a sneaker".

All images share ten texts. From image to text the task is classification by words; from text to image it is a search.
Images of one class do not count as negatives of each other's text. Files and license are those of `fashion_mnist`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.data.datasets.fashion_mnist import CLASSES, FashionMnist
from fedpeft.data.images_with_texts import choose_model, choose_start
from fedpeft.data.rows import Dataset, Rows
from fedpeft.parts import setting
from fedpeft.parts.families import TASKS


@dataclass(frozen=True)
class FashionTexts:
    """Clothes as small grayscale images, with the name of their class."""

    suited_partition: ClassVar[str] = "iid"

    path: str | None = setting(None, "folder with the IDX files; None: the Debian package")
    rows: int = setting(6000, "number of training images, the first ones", low=1000, high=60_000)
    test_rows: int = setting(1000, "number of test images, the first ones", low=100, high=10_000)
    task: str = setting("towers", "towers or captions, with its settings: towers(connector=mlp)", nested=TASKS)

    @property
    def suited_head(self) -> str | None:
        """Start of the head that suits the task."""
        return choose_start(self.task)

    def load(self) -> Dataset:
        """Return images uint8 (examples, 28, 28) with texts; labels are classes.

        Raises:
            AssetError: the files are missing and can't be fetched.
            DataError: the files are damaged.
        """
        found = FashionMnist(path=self.path, rows=self.rows, test_rows=self.test_rows).load()
        train, test = (add_sentences(rows) for rows in (found.train, found.test))
        return Dataset("fashion_texts", "image", self.task, train, test, None, choose_model(self.task))


def add_sentences(rows: Rows) -> Rows:
    """Return the rows with a sentence that names their class."""
    labels = np.asarray(rows.labels).tolist()
    return Rows(rows.inputs, rows.labels, rows.owners, texts=[write_sentence(CLASSES[label]) for label in labels])


def write_sentence(name: str) -> str:
    """Return the sentence for a class name."""
    if name == "trouser":
        return "a photo of trousers"
    article = "an" if name[0] in "aeiou" else "a"
    return f"a photo of {article} {name}"


part = FashionTexts

"""Handwritten digits: 1,797 grayscale images of 8 x 8 pixels in 10 classes, part of scikit-learn; nothing is fetched.

Source: the test part of UCI's Optical Recognition of Handwritten Digits (CC BY 4.0). A quarter of each class is held
out for test by a fixed seed; there is no standard split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedpeft.data.rows import Dataset, Rows, split_test
from fedpeft.parts import setting


@dataclass(frozen=True)
class Digits:
    """The digits, for tests and small vision runs."""

    test_fraction: float = setting(0.25, "share of the examples held out for test", above=0.0, high=0.9)
    seed: int = setting(0, "seed of the test split; not the run's seed", low=0)

    def load(self) -> Dataset:
        """Return images uint8 (examples, 8, 8), 0 to 255, with their digits."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0 to 16
        rows = Rows(images, digits.target.astype(np.int64))
        train, test = split_test(rows, self.test_fraction, self.seed)
        return Dataset(
            name="digits",
            kind="image",
            task="classification",
            train=train,
            test=test,
            label_names=tuple(str(d) for d in range(10)),
            default_model="dinov2_small",
        )


part = Digits

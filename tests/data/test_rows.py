"""What a data set of one's own may be: what would end in a traceback, or late, is refused where it is made."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.data.rows import DATASETS, Dataset, Rows, load_dataset
from fedpeft.errors import DataError

TEXTS = [f"a {'good' if i % 2 else 'bad'} cup {i}" for i in range(8)]
LABELS = np.arange(8) % 2


def made(
    train: Rows, test: Rows | None = None, names: tuple[str, ...] | None = ("bad", "good"), kind="text"
) -> Dataset:
    return Dataset("cups", kind, "classification", train, Rows(TEXTS, LABELS) if test is None else test, names, "tiny")


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (lambda: (Rows(TEXTS, list(LABELS)),), "labels are a list, and must be a NumPy array"),
        (lambda: (Rows(TEXTS, np.arange(8) % 3),), "the training rows of cups have the label 2, and there are 2 label"),
        (lambda: (Rows(TEXTS, LABELS - 1),), "the training rows of cups have the label -1"),
        (lambda: (Rows(TEXTS, LABELS), Rows(TEXTS, LABELS + 1)), "the test rows of cups have the label 2"),
        (lambda: (Rows(TEXTS, LABELS.astype(float)),), r"labels of float64, shape \(8,\); classification takes int64"),
        (lambda: (Rows([*TEXTS[:7], None], LABELS),), "row 7 is None, and each must be a str"),
        (lambda: (Rows(np.array(TEXTS), LABELS),), "texts in an array of <U1.; give them as a list of str"),
        (lambda: (Rows(TEXTS, LABELS), None, None), "label_names is None; give one name for each class"),
        (lambda: (Rows(np.zeros((8, 4, 4)), LABELS), None, ("a", "b"), "image"), "images as an array of float64"),
        (lambda: (Rows(TEXTS, LABELS), None, ("a", "b"), "image"), "images as a list; give a NumPy array of uint8"),
        (lambda: (Rows(TEXTS, LABELS), None, ("a", "b"), "sound"), "rows of the kind 'sound'; legal: text, image"),
    ],
)
def test_rows_that_no_run_can_use_are_refused_in_a_sentence(parts, told):
    with pytest.raises(DataError, match=told):
        made(*parts())


def test_a_data_set_that_returns_nothing_is_refused(monkeypatch):
    class Nothing:
        def load(self) -> None:
            """Forgets to return what it has read."""

    monkeypatch.setattr(DATASETS, "build", lambda text: Nothing())
    with pytest.raises(
        DataError, match=r"load\(\) of mine returns NoneType, and must return a fedpeft.data.rows.Dataset"
    ):
        load_dataset("mine")

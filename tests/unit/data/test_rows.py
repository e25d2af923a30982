"""What a data set of one's own may be: what would end in a traceback, or late, is refused where it is made."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.data.rows import Dataset, Rows, load_dataset
from fedpeft.parts.families import DATASETS
from tests.refusals import refuses

TEXTS = [f"a {'good' if i % 2 else 'bad'} cup {i}" for i in range(8)]
LABELS = np.arange(8) % 2


def made(
    train: Rows, test: Rows | None = None, names: tuple[str, ...] | None = ("bad", "good"), kind="text"
) -> Dataset:
    return Dataset("cups", kind, "classification", train, Rows(TEXTS, LABELS) if test is None else test, names, "tiny")


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (lambda: (Rows(TEXTS, list(LABELS)),), ("FP3132", "labels", "list")),
        (lambda: (Rows(TEXTS, np.arange(8) % 3),), ("FP3144", "the training examples of cups", "2", "2")),
        (lambda: (Rows(TEXTS, LABELS - 1),), ("FP3144", "the training examples of cups", "-1")),
        (lambda: (Rows(TEXTS, LABELS), Rows(TEXTS, LABELS + 1)), ("FP3144", "the test examples of cups", "2")),
        (lambda: (Rows(TEXTS, LABELS.astype(float)),), ("FP3143", "float64", "(8,)")),
        (lambda: (Rows([*TEXTS[:7], None], LABELS),), ("FP3140", "7", "None")),
        (lambda: (Rows(np.array(TEXTS), LABELS),), ("FP3139", "<U12")),
        (lambda: (Rows(TEXTS, LABELS), None, None), ("FP3142",)),
        (lambda: (Rows(np.zeros((8, 4, 4)), LABELS), None, ("a", "b"), "image"), ("FP3141", "an array of float64")),
        (lambda: (Rows(TEXTS, LABELS), None, ("a", "b"), "image"), ("FP3141", "a list")),
        (lambda: (Rows(TEXTS, LABELS), None, ("a", "b"), "sound"), ("FP3134", "sound", "text, image")),
    ],
)
def test_rows_that_no_run_can_use_are_refused_in_a_sentence(parts, told):
    with refuses(*told):
        made(*parts())


def test_a_data_set_that_returns_nothing_is_refused(monkeypatch):
    class Nothing:
        def load(self) -> None:
            """Forgets to return what it has read."""

    monkeypatch.setattr(DATASETS, "build", lambda text: Nothing())
    with refuses("FP3145", "mine", "NoneType"):
        load_dataset("mine")

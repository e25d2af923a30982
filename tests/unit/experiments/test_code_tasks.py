"""Baselines of code tasks: words alone find defects that words reveal, and no others."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.code_tasks.__main__ import TASKS, measure, score_words_alone, share_of_defects
from fedpeft.data.rows import Dataset, Rows
from fedpeft.parts.families import DATASETS


def build_data(defect: str) -> Dataset:
    random = np.random.default_rng(0)
    rows = []
    for i in range(60):
        words = [str(word) for word in random.choice(["a", "b", "c"], 6)]
        place = int(random.integers(6))
        words[place] = defect if defect else words[place]
        tags = [int((k == place and i % 2 == 0) or (bool(defect) and word == defect)) for k, word in enumerate(words)]
        rows.append(json.dumps({"words": words, "tags": tags}))
    return Dataset("made", "text", "token_labels", Rows(rows[:40]), Rows(rows[40:]), ("O", "B-DEFECT"), "tiny")


@pytest.mark.medium
def test_words_find_what_they_reveal() -> None:
    pytest.importorskip("seqeval")
    found = score_words_alone(build_data("bug"))
    assert found == {"accuracy": 1.0, "f1": 1.0}
    assert score_words_alone(build_data(""))["f1"] < 0.5
    assert share_of_defects(build_data("bug").test) == pytest.approx(1 / 6)


def test_the_tasks_exist_and_guessing_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in TASKS:
        DATASETS.build(task)
    monkeypatch.setattr("experiments.code_tasks.__main__.load_dataset", lambda _: build_data("bug"))
    assert measure("made", "majority") == {"accuracy": pytest.approx(5 / 6), "f1": 0.0}

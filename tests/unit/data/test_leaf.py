"""LEAF's files: each dataset is read as what it is, by user, and other layouts are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedpeft.data.made_words import WORDS
from fedpeft.data.rows import load_dataset
from tests.benchmark_files import (
    TEST,
    TRAIN,
    USERS,
    write_celeba,
    write_femnist,
    write_leaf,
    write_reddit,
    write_shakespeare,
)
from tests.refusals import refuses


def load(folder, **settings):
    given = "".join(f", {name}={value!r}" for name, value in settings.items())
    return load_dataset(f"leaf(path={str(folder)!r}{given})")


def test_femnist_is_images_of_writers(tmp_path):
    folder = write_femnist(tmp_path)
    data = load(folder)
    assert (data.kind, data.task, data.classes) == ("image", "classification", 62)
    assert (len(data.train), len(data.test)) == (3 * TRAIN, 3 * TEST)
    stored = json.loads(next((folder / "train").iterdir()).read_text())["user_data"][USERS[1]]
    of_user = data.train.take(np.flatnonzero(data.train.owners == USERS[1]))
    assert np.array_equal(of_user.inputs.reshape(TRAIN, 784), np.rint(255 * np.array(stored["x"])))
    assert [data.label_names[label] for label in of_user.labels] == ["3", "B", "b"] * 2 + ["3", "B"]


def test_celeba_is_images_from_the_raw_folder(tmp_path):
    folder = write_celeba(tmp_path)
    data = load(folder, side=16)
    assert data.train.inputs.shape == (3 * TRAIN, 16, 16, 3)
    assert data.label_names == ("not smiling", "smiling")
    assert np.array_equal(data.train.inputs[:, 8, 8, 0] > 150, data.train.labels == 1)
    (folder / "raw" / "img_align_celeba").rename(tmp_path / "elsewhere")
    assert len(load(folder, images=str(tmp_path / "elsewhere")).test) == 3 * TEST
    with refuses("FP3204", "img_align_celeba"):
        load(folder)


def test_sent140_is_the_tweets_texts():
    data = load("examples/leaf/sent140/data")
    stored = json.loads(next(Path("examples/leaf/sent140/data/train").iterdir()).read_text())["user_data"]
    first = next(iter(stored))
    mine = data.train.take(np.flatnonzero(data.train.owners == first))
    assert list(mine.inputs) == [fields[4] for fields in stored[first]["x"]]
    assert [data.label_names[label] for label in mine.labels] == [
        ("negative", "positive")[label] for label in stored[first]["y"]
    ]


def test_shakespeare_is_the_next_character(tmp_path):
    data = load(write_shakespeare(tmp_path))
    assert data.task == "classification"
    assert "space" in data.label_names
    assert {len(text) for text in data.train.inputs} == {80}
    text, label = data.train.inputs[0], data.label_names[data.train.labels[0]]
    assert " ".join(WORDS[3 * i] for i in range(60))[80] == {"space": " "}.get(label, label)
    assert len(text.split()) > 5


def test_a_character_may_occur_in_test_examples_only(tmp_path):
    users = {"a": [("to be", "x"), ("or not", "y"), ("to", "z")], "b": [("be", "y"), ("that", "x"), ("is", "%")]}
    data = load(write_leaf(tmp_path, users, test=1))
    assert sorted(data.label_names) == ["%", "x", "y", "z"]
    assert {data.label_names[label] for label in data.test.labels} == {"%", "z"}


def test_reddit_is_the_comments_without_marks(tmp_path):
    data = load(write_reddit(tmp_path))
    assert (data.task, data.label_names) == ("causal_lm", None)
    assert data.train.inputs[0] == " ".join(WORDS[:8])
    assert set(data.train.owners) == set(USERS)


def test_the_complete_reddit_has_comments_as_texts(tmp_path):
    y = {"subreddit": "made_up", "created_utc": "1", "score": 1}
    users = {user: [(f"{WORDS[i]} {user}", y) for i in range(6)] for user in ("1", "2")}
    assert load(write_leaf(tmp_path, users)).train.inputs[0] == f"{WORDS[0]} 1"


def test_without_a_test_folder_a_share_is_held_out(tmp_path):
    folder = write_femnist(tmp_path)
    data = load(folder / "train")
    assert (len(data.train), len(data.test)) == (19, 5)
    assert not (folder / "train" / "test").exists()


BAD = {
    "a list": ([1], "FP3211", "list, which --dataset file:PATH reads"),
    "other names": ({"rows": []}, "FP3207", "rows"),
    "no examples": ({"users": [], "user_data": {}}, "FP3028"),
    "lists of two lengths": ({"users": ["a"], "user_data": {"a": {"x": ["t"], "y": []}}}, "FP3208", "'a'"),
    "a user without data": ({"users": ["a"], "user_data": {}}, "FP3208", "'a'"),
    "vectors, as Synthetic has": (
        {"users": ["a"], "user_data": {"a": {"x": [[0.1, 2.5]], "y": [1]}}},
        "FP3205",
        "example 1 of the user 'a'",
        "FEMNIST",
        "Reddit",
    ),
    "a class that FEMNIST lacks": (
        {"users": ["a"], "user_data": {"a": {"x": [[1.0] * 784], "y": [62]}}},
        "FP3205",
        "example 1 of the user 'a'",
    ),
    "a class that is no number": (
        {"users": ["a"], "user_data": {"a": {"x": [["1", "d", "q", "a", "t"]] * 2, "y": [0, float("nan")]}}},
        "FP3209",
        "example 2 of the user 'a'",
        "nan",
    ),
    "an infinite class": (
        {"users": ["a"], "user_data": {"a": {"x": [["1", "d", "q", "a", "t"]], "y": [float("inf")]}}},
        "FP3205",
        "example 1 of the user 'a'",
        "inf",
    ),
    "a path out of the folder of images": (
        {"users": ["a"], "user_data": {"a": {"x": ["../1.jpg"], "y": [1]}}},
        "FP3205",
        "../1.jpg",
    ),
    "two layouts": (
        {"users": ["a"], "user_data": {"a": {"x": ["to be", ["1", "d", "q", "a", "t"]], "y": ["x", 1]}}},
        "FP3209",
        "example 2 of the user 'a'",
        "Shakespeare",
    ),
}


@pytest.mark.parametrize(("content", "code", "values"), [(c, code, v) for c, code, *v in BAD.values()], ids=BAD)
def test_another_layout_is_refused(content, code, values, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps(content))
    with refuses(code, *values):
        load(tmp_path / "data.json")


def test_a_folder_without_files_of_leaf_is_refused(tmp_path):
    with refuses("FP3206", str(tmp_path)):
        load(tmp_path)
    (tmp_path / "data.json").write_text("{")
    with refuses("FP3038", "data.json"):
        load(tmp_path)

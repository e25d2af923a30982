"""Every data set part loads what its description says."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest

from fedpeft.data.datasets.shakespeare import group_lines, pack_lines
from fedpeft.data.label_columns import encode_labels
from fedpeft.data.rows import Dataset, Rows, get_test_source, load_dataset, split_validation
from fedpeft.parts.families import DATASETS, MODELS, PARTITIONS
from fedpeft.parts.spec import parse_spec
from tests.refusals import refuses

# name: task, kind, training rows, test rows, classes
FETCHED = {
    "code_clones": ("classification", "text", 4_228, 1_025, 2),
    "code_repair": ("instruction", "text", 3_200, 797, 0),
    "code_review": ("classification", "text", 9_056, 2_241, 2),
    "code_search": ("retrieval", "text", 3_120, 800, 0),
    "fashion_texts": ("towers", "image", 6_000, 1_000, 0),
    "fashion_mnist": ("classification", "image", 60_000, 10_000, 10),
    "20newsgroups": ("classification", "text", 11_293, 7_528, 20),
    "reuters_r52": ("classification", "text", 6_532, 2_568, 52),
    "reuters_r8": ("classification", "text", 5_485, 2_189, 8),
    "code_types": ("classification", "text", 9_206, 2_263, 10),
    "code_names": ("token_labels", "text", 4_800, 1_178, 7),
    "reviews": ("classification", "text", 15_077, 3_846, 2),
    "shakespeare": ("causal_lm", "text", 10_305, 1_244, 0),
}
MADE = {
    "digits": ("classification", "image", 1_348, 449, 10),
    "office": ("instruction", "text", 480, 96, 0),
    "scenes": ("towers", "image", 1_200, 240, 0),
    "tiny_pairs": ("retrieval", "text", 240, 60, 0),
    "tiny": ("classification", "text", 600, 200, 4),
    "tiny_lm": ("causal_lm", "text", 271, 40, 0),
    "tiny_seq2seq": ("seq2seq", "text", 320, 48, 0),
}
KNOWN = FETCHED | MADE


def test_every_part_is_tried_here() -> None:
    assert set(DATASETS.names) == {
        *KNOWN,
        "arithmetic",
        "clients",
        "clips",
        "fedllm_bench",
        "file",
        "flowertune",
        "glue",
        "hf",
        "leaf",
        "legalbench",
        "medqa",
        "planted",
        "sample",
        "tasks",
    }  # the latter in files of their own


@pytest.mark.parametrize("name", [*MADE, *(pytest.param(n, marks=pytest.mark.slow) for n in FETCHED)])
def test_what_the_description_says(name: str) -> None:
    task, kind, train, test, classes = KNOWN[name]
    data = load_dataset(name)
    assert (data.name, data.task, data.kind, data.classes) == (name, task, kind, classes)
    assert (len(data.train), len(data.test)) == (train, test)
    assert data.default_model in MODELS.names
    for rows in (data.train, data.test):
        if kind == "text":
            assert all(text.strip() for text in rows.inputs)
        else:
            assert isinstance(rows.inputs, np.ndarray)
            assert rows.inputs.dtype == np.uint8
        if task == "classification":
            assert rows.labels is not None
            assert rows.labels.dtype == np.int64
            assert set(np.unique(rows.labels)) <= set(range(classes))
        else:
            assert rows.labels is None or rows.texts is not None  # captions
    if task == "token_labels":
        assert {tag for text in data.train.inputs for tag in json.loads(text)["tags"]} == set(range(classes))
    elif classes:
        assert len(np.unique(data.train.labels)) == classes  # type: ignore[arg-type]
    again = load_dataset(name)
    assert np.all(again.train.inputs == data.train.inputs)


@pytest.mark.slow
def test_newsgroups_rows_have_the_right_labels() -> None:
    data = load_dataset("20newsgroups")
    assert data.label_names is not None
    assert data.train.labels is not None
    assert data.label_names[0] == "alt.atheism"
    assert data.train.inputs[0].startswith("alt atheism faq atheist resources")
    assert data.train.labels[0] == 0
    motorcycles = data.label_names.index("rec.motorcycles")
    share = [("bike" in text.split()) for text in data.train.inputs]
    assert np.mean(np.array(share)[data.train.labels == motorcycles]) > 0.3 > 10 * np.mean(share) / 1.5 - 0.3


@pytest.mark.slow
def test_shakespeare_owners_are_roles_and_all_are_tested() -> None:
    data = load_dataset("shakespeare(min_words=2000)")
    assert data.train.owners is not None
    assert data.test.owners is not None
    owners = Counter(data.train.owners.tolist())
    assert len(owners) == 119
    assert set(data.test.owners.tolist()) == set(owners)
    assert owners["hamlet/Ham"] == max(owners.values())
    assert not any("[" in text for text in data.train.inputs)
    rest, _ = split_validation(data.train, 500)
    partition = PARTITIONS.build("natural").split(rest, 0, 0).check(len(rest))
    assert len(partition) == 119  # validation takes no owner away
    words = [len(text.split()) for text in data.train.inputs]
    assert 48 <= np.median(words) < 60


PLAY = """THE PLAY

PERSONS: ANNA, BERT.

ACT I.

SCENE I. A room.

[Enter ANNA
and BERT.]

ANNA.
Good day.
A second line. [Aside.] Hm.

[Knocking.]

It goes on.

BERT OF YORK.
Yes.

Not a name.

SCENE II. Another room.

Music plays and nobody speaks.

ANNA.
Again.
"""


def test_speeches_go_to_their_speakers() -> None:
    assert group_lines(PLAY) == {
        "ANNA": ["Good day.", "A second line.  Hm.", "It goes on.", "Again."],
        "BERT OF YORK": ["Yes.", "Not a name."],
    }
    assert group_lines("Anna.\nHello.\n\nBert.\nHi, Anna.\n\nWELL.\nNo name.") == {
        "Anna": ["Hello."],
        "Bert": ["Hi, Anna.", "WELL.", "No name."],
    }


def test_runs_are_whole_lines() -> None:
    assert list(pack_lines(["a b", "c", "d e f", "g"], 3)) == ["a b\nc", "d e f", "g"]
    assert list(pack_lines([], 3)) == []


def test_tiny_is_neither_trivial_nor_hopeless() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    data = load_dataset("tiny")
    vectorizer = TfidfVectorizer()
    model = LogisticRegression(C=3).fit(vectorizer.fit_transform(data.train.inputs), data.train.labels)
    assert 0.6 < model.score(vectorizer.transform(data.test.inputs), data.test.labels) < 0.9  # measured: 0.725


def test_tiny_follows_its_settings() -> None:
    data = load_dataset("tiny(rows=50, test_rows=7, classes=3, seed=5)")
    assert (len(data.train), len(data.test), data.classes) == (50, 7, 3)
    assert data.train.inputs != load_dataset("tiny(rows=50, test_rows=7, classes=3, seed=6)").train.inputs
    assert load_dataset("tiny_lm(owners=3)").train.owners is not None


def test_take_keeps_columns_together() -> None:
    rows = Rows(["a", "b", "c"], np.array([0, 1, 2]), np.array(["x", "y", "z"]))
    taken = rows.take(np.array([2, 0]))
    assert list(taken.inputs) == ["c", "a"]
    assert taken.labels is not None
    assert taken.owners is not None
    assert taken.labels.tolist() == [2, 0]
    assert taken.owners.tolist() == ["z", "x"]
    images = Rows(np.zeros((3, 2, 2), np.uint8)).take(np.array([1]))
    assert isinstance(images.inputs, np.ndarray)
    assert images.inputs.shape == (1, 2, 2)


def test_containers_refuse_what_does_not_fit() -> None:
    with refuses("FP3133", "2", "labels"):
        Rows(["a", "b"], np.array([1]))
    good = Rows(["a", "b"], np.array([0, 1]))
    legal = {"name": "x", "kind": "text", "task": "classification", "train": good, "test": good}
    more = {"label_names": ("p", "q"), "default_model": "tiny"}
    Dataset(**legal, **more)  # type: ignore[arg-type]
    for change, words in (
        ({"train": Rows(["a", "b"], np.array([1, 1]))}, ("FP3138",)),
        ({"test": Rows([], np.array([], np.int64))}, ("FP3136", "test")),
        ({"train": Rows(["a"])}, ("FP3137",)),
    ):
        with refuses(*words):
            Dataset(**(legal | change), **more)  # type: ignore[arg-type]


def test_label_names_are_sorted_numbers_by_value() -> None:
    assert encode_labels(["10", "2", "1"], [], "x")[0] == ("1", "2", "10")
    for labels in (["01", "1", "001", "0001"], ["0001", "1", "001", "01"]):  # not by the order of a set
        assert encode_labels(labels, [], "x")[0] == ("0001", "001", "01", "1")
    names, train, test = encode_labels(["b", "a", "b"], ["b"], "x")
    assert names == ("a", "b")
    assert train.tolist() == [1, 0, 1]
    assert test.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("20newsgroup", ("FP1231", "dataset '20newsgroup", "did you mean '20newsgroups")),
        ("tiny:x", ("FP1235", "x")),
        ("file", ("FP1226", "path")),
        ("file()", ("FP1226", "path")),
        ("tiny(rows=)", ("FP1420",)),
        ("rows.csv", ("FP1085", "rows.csv", "rows.csv")),
        ("rows.CSV", ("FP1085", "rows.CSV")),
        ("rows.xlsx", ("FP1085", "rows.xlsx")),
        ("my/rows", ("FP1085", "file:my/rows", "hf:my/rows")),
        ("tasks('rows.csv', tiny)", ("FP1085", "rows.csv")),
        ("tasks(file:a.csv, file:b.csv)", ("FP1420", "signs other than letters, digits and _, needs quotes")),
        ("tiny(classes=1)", ("FP1227", "classes", "at least 2")),
        ("tiny(rows='many')", ("FP1227", "rows", "int")),
    ],
)
def test_wrong_names_and_settings_are_one_sentence(text: str, words: tuple[str, ...]) -> None:
    with refuses(*words):
        load_dataset(text)


@pytest.mark.parametrize("text", ["rows.csv", "tasks('rows.csv', tiny)"])
def test_a_run_s_file_without_its_form_is_told_before_rows_are_read(text: str) -> None:
    with refuses("FP1085", "rows.csv"):
        DATASETS.replace_paths(text, str)


def test_settings_carry_their_help() -> None:
    for name in DATASETS.names:
        for field in dataclasses.fields(DATASETS.part(name)):  # type: ignore[arg-type]
            assert field.metadata["help"]


OTHER = {
    "every": 3, "late": 2, "compete": "all",
    "rows": 100, "owners": 5, "validation_rows": 40, "images_only": 0.5, "texts_only": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "another"),
    [
        ("tasks('tiny(classes=6)', classes=2)", "tasks('tiny(classes=6, seed=1)', classes=2)"),
        ("scenes(test_rows=12)", "scenes(test_rows=12, seed=1)"),
    ],
)
def test_settings_of_training_rows_leave_the_test_rows_as_they_are(text, another):
    spec = parse_spec(text)
    plain = load_dataset(text).test
    for name in DATASETS.part(spec.name).training_settings:
        other = str(replace(spec, settings=spec.settings | {name: OTHER[name]}))
        rows = load_dataset(other).test
        assert np.array_equal(rows.inputs, plain.inputs), name
        assert np.array_equal(rows.labels, plain.labels), name
        assert rows.texts == plain.texts, name
        assert get_test_source(other) == get_test_source(text)
    assert not np.array_equal(load_dataset(another).test.inputs, plain.inputs)
    assert get_test_source(another) != get_test_source(text)


def test_what_data_sets_say_of_their_settings_is_of_settings_that_they_have():
    for name in DATASETS.names:
        part = DATASETS.part(name)
        assert set(getattr(part, "training_settings", ())) <= {field.name for field in fields(part)}, name

"""Every data set part loads what its description says; a user's own files fail with one sentence."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from fedpeft.data.datasets.shakespeare import lines_by_role, packed
from fedpeft.data.partition import PARTITIONS
from fedpeft.data.rows import DATASETS, Dataset, Rows, encode_labels, load_dataset, split_validation
from fedpeft.errors import AssetError, ConfigError, DataError, FedpeftError
from fedpeft.models.base_model import MODELS

# name: task, kind, training rows, test rows, classes
FETCHED = {
    "fashion_mnist": ("classification", "image", 60_000, 10_000, 10),
    "20newsgroups": ("classification", "text", 11_293, 7_528, 20),
    "reuters_r52": ("classification", "text", 6_532, 2_568, 52),
    "reuters_r8": ("classification", "text", 5_485, 2_189, 8),
    "code_types": ("classification", "text", 9_206, 2_263, 10),
    "reviews": ("classification", "text", 15_077, 3_846, 2),
    "shakespeare": ("causal_lm", "text", 10_305, 1_244, 0),
}
MADE = {
    "digits": ("classification", "image", 1_348, 449, 10),
    "office": ("instruction", "text", 480, 96, 0),
    "tiny": ("classification", "text", 600, 200, 4),
    "tiny_lm": ("causal_lm", "text", 271, 40, 0),
}
KNOWN = FETCHED | MADE


def test_every_part_is_tried_here() -> None:
    assert set(DATASETS.names) == {*KNOWN, "file", "hf"}


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
        if classes:
            assert rows.labels is not None
            assert rows.labels.dtype == np.int64
            assert set(np.unique(rows.labels)) <= set(range(classes))
        else:
            assert rows.labels is None
    if classes:
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
    assert lines_by_role(PLAY) == {
        "ANNA": ["Good day.", "A second line.  Hm.", "It goes on.", "Again."],
        "BERT OF YORK": ["Yes.", "Not a name."],
    }
    assert lines_by_role("Anna.\nHello.\n\nBert.\nHi, Anna.\n\nWELL.\nNo name.") == {
        "Anna": ["Hello."],
        "Bert": ["Hi, Anna.", "WELL.", "No name."],
    }


def test_runs_are_whole_lines() -> None:
    assert list(packed(["a b", "c", "d e f", "g"], 3)) == ["a b\nc", "d e f", "g"]
    assert list(packed([], 3)) == []


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
    with pytest.raises(DataError, match=r"2 inputs but labels of shape"):
        Rows(["a", "b"], np.array([1]))
    good = Rows(["a", "b"], np.array([0, 1]))
    legal = {"name": "x", "kind": "text", "task": "classification", "train": good, "test": good}
    more = {"label_names": ("p", "q"), "default_model": "tiny"}
    Dataset(**legal, **more)  # type: ignore[arg-type]
    for change, words in (
        ({"train": Rows(["a", "b"], np.array([1, 1]))}, "one class only"),
        ({"test": Rows([], np.array([], np.int64))}, "no test rows"),
        ({"train": Rows(["a"])}, "no labels"),
    ):
        with pytest.raises(DataError, match=words):
            Dataset(**(legal | change), **more)  # type: ignore[arg-type]


def test_label_names_are_sorted_numbers_by_value() -> None:
    assert encode_labels(["10", "2", "1"], [], "x")[0] == ("1", "2", "10")
    names, train, test = encode_labels(["b", "a", "b"], ["b"], "x")
    assert names == ("a", "b")
    assert train.tolist() == [1, 0, 1]
    assert test.tolist() == [1]


# A user's own files


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


ROWS = [
    ("good film", "pos", "ann"),
    ('bad, "very" bad\nfilm', "neg", "bob"),
    ("fine", "pos", "bob"),
    ("dull", "neg", "ann"),
]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a_file_of_each_kind(tmp_path: Path, suffix: str) -> None:
    if suffix == "jsonl":
        content = "\n".join(json.dumps({"body": t, "y": y, "who": w}) for t, y, w in ROWS * 5) + "\n\n"
    else:
        comma = "," if suffix == "csv" else "\t"
        cells = [("body", "y", "who"), *ROWS * 5]
        content = "\r\n".join(comma.join('"' + c.replace('"', '""') + '"' for c in row) for row in cells)
    path = write(tmp_path, f"my.{suffix}", b"\xef\xbb\xbf" + content.encode())  # with the mark that Excel writes
    data = load_dataset(f"file(path={path!r}, text=body, label='y', owner=who, test_fraction=0.25)")
    assert (len(data.train), len(data.test), data.label_names) == (15, 5, ("neg", "pos"))
    assert data.train.owners is not None
    both = {
        (text, data.label_names[label], owner)
        for rows in (data.train, data.test)
        for text, label, owner in zip(rows.inputs, rows.labels, rows.owners, strict=True)  # type: ignore[arg-type]
    }
    assert both == set(ROWS)
    assert data.default_model == "minilm"


def test_short_form_test_file_and_language_modelling(tmp_path: Path) -> None:
    path = write(tmp_path, "my.csv", "text,label\n" + "a,1\nb,2\n" * 5)
    assert len(load_dataset(f"file:{path}").test) == 2
    other = write(tmp_path, "test.csv", "label,text\n2,c\n")
    data = load_dataset(f"file(path={path!r}, test={other!r})")
    assert (len(data.train), list(data.test.inputs)) == (10, ["c"])
    assert data.test.labels is not None
    assert data.test.labels.tolist() == [1]
    language = load_dataset(f"file(path={path!r}, label=None)")
    assert (language.task, language.label_names, language.default_model) == ("causal_lm", None, "smollm2")


def test_numbers_and_long_texts_are_read(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "long " * 50_000, "label": i % 2}) for i in range(4)]
    assert load_dataset("file:" + write(tmp_path, "my.jsonl", "\n".join(lines))).label_names == ("0", "1")
    table = "text,label\n" + ("word " * 50_000 + ",a\nb,b\n") * 3
    assert len(load_dataset("file:" + write(tmp_path, "my.csv", table)).train) == 5


GOOD = "text,label\na,x\nb,y\nc,x\nd,y\n"


@pytest.mark.parametrize(
    ("name", "content", "settings", "error", "words"),
    [
        ("my.csv", None, "", DataError, "there is no file"),
        ("my.xlsx", GOOD, "", ConfigError, "must end in .csv, .tsv"),
        ("my.csv", "", "", DataError, "is empty"),
        ("my.csv", "text,label\n", "", DataError, "has no rows"),
        ("my.jsonl", "\n\n", "", DataError, "has no rows"),
        ("my.csv", b"text,label\n\xff\xfe,x\n", "", DataError, r"not UTF-8 text \(byte"),
        ("my.csv", "a,label\n1,x\n", "", DataError, "no column 'text' for the text; legal: a, label"),
        ("my.csv", "text,lable\n1,x\n", "", DataError, "no column 'label' for the label; did you mean 'lable'"),
        ("my.csv", GOOD, ", owner=who", DataError, "no column 'who' for the owner"),
        ("my.csv", "text,label\na,x\nb\n", "", DataError, "line 3 of .* has 1 fields, the first 2"),
        ("my.csv", "text,text\na,x\n", "", DataError, "names a column twice"),
        ("my.csv", 'text,label\n"a,x\n', "", DataError, "line 2 of .* not valid CSV"),
        ("my.csv", "text,label\na,x\nb,x\nc,x\n", "", DataError, "one class only"),
        ("my.csv", "text,label\na,x\n ,y\n", "", DataError, "line 3 of .*: the column 'text' is empty"),
        ("my.csv", "text,label\na,x\nb,\n", "", DataError, "line 3 of .*: the column 'label' must hold a word"),
        ("my.csv", "text,label\na,x\nb,y\n", "", DataError, "can't be held out"),
        ("my.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "", DataError, "line 2 of .* not valid JSON"),
        ("my.jsonl", '["a", 1]\n', "", DataError, "line 1 of .* not a JSON object"),
        ("my.jsonl", "[" * 100_000, "", DataError, "line 1 of .* not valid JSON"),
        ("my.jsonl", '{"text": 5, "label": 1}\n', "", DataError, "line 1 of .* must hold text, got 5"),
        ("my.jsonl", '{"text": "a", "label": 1.5}\n', "", DataError, "must hold a word or an integer, got 1.5"),
        ("my.jsonl", '{"text": "a", "label": null}\n', "", DataError, "must hold a word or an integer, got None"),
        ("my.csv", GOOD, ", test='no.csv'", DataError, "there is no file no.csv"),
        ("my.csv", GOOD, ", test_fraction=1.5", ConfigError, "test_fraction must be above 0 and at most 0.9"),
        ("my.csv", GOOD, ", labels='y'", ConfigError, "no setting 'labels'; did you mean 'label'"),
        ("my.csv", GOOD, ", text=5", ConfigError, "text must be str, got 5"),
    ],
)
def test_a_wrong_file_is_one_sentence(
    tmp_path: Path, name: str, content: str | bytes | None, settings: str, error: type[FedpeftError], words: str
) -> None:
    path = write(tmp_path, name, content) if content is not None else str(tmp_path / name)
    with pytest.raises(error, match=words) as caught:
        load_dataset(f"file(path={path!r}{settings})")
    assert "\n" not in str(caught.value)


def test_unseen_test_labels_and_directories_are_one_sentence(tmp_path: Path) -> None:
    path, other = write(tmp_path, "my.csv", GOOD), write(tmp_path, "test.csv", "text,label\na,z\n")
    with pytest.raises(DataError, match=r"1 of the test labels do not occur in the training rows: 'z'"):
        load_dataset(f"file(path={path!r}, test={other!r})")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"is a directory"):
        load_dataset(f"file:{tmp_path / 'folder.csv'}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("20newsgroup", "unknown data set '20newsgroup'; did you mean '20newsgroups'"),
        ("tiny:x", "takes no ':x'"),
        ("file", "needs the setting path"),
        ("file()", "needs the setting path"),
        ("tiny(rows=)", "not of the form"),
        ("tiny(classes=1)", "classes must be at least 2"),
        ("tiny(rows='many')", "rows must be int"),
    ],
)
def test_wrong_names_and_settings_are_one_sentence(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_dataset(text)


# The hub, which tests never reach: a stand-in for the `datasets` library, and the library itself on local files


class NotFoundError(FileNotFoundError):
    pass


class Split(list[dict[str, object]]):
    features = {"sentence": None, "label": SimpleNamespace(names=["neg", "pos"])}  # noqa: RUF012


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the stand-in's load_dataset returns (or raises), by name."""
    answers: dict[str, object] = {}

    def load(name: str, subset: str | None, revision: str | None) -> object:
        answer = answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer

    library = ModuleType("datasets")
    library.load_dataset = load  # type: ignore[attr-defined]
    library.exceptions = SimpleNamespace(DatasetNotFoundError=NotFoundError)  # type: ignore[attr-defined]
    library.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "datasets", library)
    return answers


def test_hub_rows_and_class_names(hub: dict[str, object]) -> None:
    rows = Split({"sentence": f"text {i}", "label": i % 2} for i in range(10))
    hub["org/name"] = {"train": rows, "validation": Split(rows[:4]), "test": Split([{"sentence": "a", "label": -1}])}
    data = load_dataset("hf(name='org/name', text=sentence, test=validation)")
    assert (data.name, data.label_names, len(data.train), len(data.test)) == ("org/name", ("neg", "pos"), 10, 4)
    with pytest.raises(DataError, match=r"hidden labels"):
        load_dataset("hf(name='org/name', text=sentence)")
    with pytest.raises(DataError, match=r"no column 'text' for the text; legal: label, sentence"):
        load_dataset("hf:org/name")
    with pytest.raises(ConfigError, match=r"no split 'dev'; .*legal: test, train, validation; test=None"):
        load_dataset("hf(name='org/name', text=sentence, test=dev)")
    assert len(load_dataset("hf(name='org/name', text=sentence, test=None)").test) == 2


@pytest.mark.parametrize(
    ("raised", "error", "words"),
    [
        (NotFoundError("x"), AssetError, "the hub has no data set 'org/name'"),
        (ConnectionError("Couldn't reach\n'org/name'"), AssetError, "can't fetch .* Couldn't reach 'org/name'"),
        (ValueError("BuilderConfig 'z' not found. Available: ['a']"), ConfigError, "Available: \\['a'\\]"),
    ],
)
def test_hub_failures_are_one_sentence(
    hub: dict[str, object], raised: Exception, error: type[FedpeftError], words: str
) -> None:
    hub["org/name"] = raised
    with pytest.raises(error, match=words) as caught:
        load_dataset("hf:org/name")
    assert "\n" not in str(caught.value)


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'fedpeft\[hub\]'"):
        DATASETS.build("hf:org/name").load()


@pytest.mark.slow
def test_the_real_library_on_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder, "train.csv", "text,label\n" + "a,x\nb,y\n" * 5)
    write(folder, "test.csv", "text,label\na,x\n")
    data = load_dataset(f"hf:{folder}")
    assert (len(data.train), len(data.test), data.label_names) == (10, 1, ("x", "y"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(AssetError, match=r"hub"):
        load_dataset("hf:no-such-org-of-fedpeft/no-such-name")


def test_settings_carry_their_help() -> None:
    for name in DATASETS.names:
        for field in dataclasses.fields(DATASETS.part(name)):  # type: ignore[arg-type]
            assert field.metadata["help"]

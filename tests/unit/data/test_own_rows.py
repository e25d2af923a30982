"""Rows of a user's own, from files and from the hub: each kind is read, and what is wrong is one sentence."""

from __future__ import annotations

import errno
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from fedpeft.data.in_memory import create_part
from fedpeft.data.record_files import read_records
from fedpeft.data.rows import load_dataset
from fedpeft.data.user_rows import build_labeled_rows
from fedpeft.errors import AssetError, ConfigError, DataError, FedpeftError
from fedpeft.parts.families import DATASETS
from tests.refusals import has_error, pattern_of, refuses


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
    ("name", "content", "settings", "words"),
    [
        ("my.csv", None, "", ("FP3036", "my.csv")),
        ("my.xlsx", GOOD, "", ("FP1108", "my.xlsx", ".csv, .tsv")),
        ("my.csv", "", "", ("FP3114", "my.csv")),
        ("my.csv", "text,label\n", "", ("FP3028", "my.csv")),
        ("my.jsonl", "\n\n", "", ("FP3028", "my.jsonl")),
        ("my.csv", b"text,label\n\xff\xfe,x\n", "", ("FP3185", "my.csv", "UTF-8", "byte 11", "UTF-8")),
        ("my.csv", "a,label\n1,x\n", "", ("FP3155", "my.csv", "'text'", "text", "a, label")),
        ("my.csv", "question,Answer\n1,x\n", "", ("FP3155", "'ASK.jinja', answer=Answer", "{{ question }};")),
        ("my.csv", "response,instruction\n1,x\n", "", ("FP3155", "template=alpaca, answer=response", "T5")),
        ("my.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "", ("FP3155", "line 2", "'label'")),
        ("my.csv", "text,lable\n1,x\n", "", ("FP3155", "'label'", "did you mean 'lable'")),
        ("my.csv", "a,b\n1,x\n", ", owner=who", ("FP3155", "'text'", "'label'", "'who'", "a, b")),
        ("my.csv", GOOD, ", owner=who", ("FP3155", "'who'", "owner")),
        ("my.csv", "text,label\na,x\nb\n", "", ("FP3117", "line 3", "my.csv", 1, 2)),
        ("my.csv", "text,label\na,x\nb, c,y\n", "", ("FP3117", "line 3", "my.csv", 3, 2, "','")),
        ("my.csv", "text;label\na, b;x\n", ", sep=','", ("FP3183", "';'", "sep=';')", "','")),
        ("my.tsv", "text,label\na,x\n", ", sep=tab", ("FP3183", "','", "sep=',')")),
        ("my.csv", "\ntext,label\na,x\n\nb\n", "", ("FP3117", "line 5", 1, 2)),
        ("my.csv", 'text,label\n"a\nb",x\n\n"c\n\nd"\n', "", ("FP3117", "line 5", 1, 2)),
        ("my.csv", 'text,label\n\n"a\n\nb",x\n"\n ",y\n', "", ("FP3062", "'text'", "line 6")),
        ("my.csv", 'text,label\na,x\n"b\n\n,x\n', "", ("FP3118", "line 3", "my.csv")),
        ("my.csv", "text,text\na,x\n", "", ("FP3115", "text, text")),
        ("my.csv", 'text,label\n"a,x\n', "", ("FP3118", "line 2", "my.csv")),
        ("my.csv", "text,label\na,x\nb,x\nc,x\n", "", ("FP3138", "my.csv")),
        ("my.csv", "text,label\na,x\n ,y\n", "", ("FP3062", "my.csv", 1, "'text'", "line 3")),
        ("my.csv", "text,label\na,x\nb,\n", "", ("FP3062", 1, "'label'", "line 3", "label_type=labels")),
        ("my.csv", "text,label\na,x\nb,\n", ", label_type=class", ("FP3062", "file(..., incomplete=drop)")),
        ("my.csv", "text,label\na,x\nb,y\n", "", ("FP3146", 1, 2)),
        ("my.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "", ("FP3119", "line 2", "my.jsonl")),
        ("my.jsonl", '["a", 1]\n', "", ("FP3120", "line 1", "my.jsonl")),
        ("my.jsonl", "[" * 100_000, "", ("FP3119", "line 1", "my.jsonl")),
        ("my.jsonl", '{"text": 5, "label": 1}\n', "", ("FP3154", "line 1", "'text'", 5)),
        ("my.jsonl", '{"text": "a", "label": 2.0}\n', "", ("FP3071", "'label'", "2.0")),
        ("my.jsonl", '{"text": "a", "label": null}\n', "", ("FP3062", 1, "'label'", "line 1")),
        ("my.csv", GOOD, ", test='no.csv'", ("FP3036", "no.csv")),
        ("my.csv", GOOD, ", test_fraction=1.5", ("FP1227", "test_fraction", 0, 0.9, 1.5)),
        ("my.csv", GOOD, ", lable='y'", ("FP1225", "'lable'", "did you mean 'label'")),
        ("my.csv", GOOD, ", text=5", ("FP1227", "text", "str", 5)),
    ],
)
def test_a_wrong_file_is_one_sentence(
    tmp_path: Path, name: str, content: str | bytes | None, settings: str, words: tuple[object, ...]
) -> None:
    path = write(tmp_path, name, content) if content is not None else str(tmp_path / name)
    with refuses(*words) as caught:
        load_dataset(f"file(path={path!r}{settings})")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "settings", "code", "column"),
    [
        ("my.csv", 'a,label\n"1\n2",x\n', "", "FP3155", "'text'"),
        ("my.tsv", "text\tlabel\na\tx\n", ", text=a, target=c", "FP3006", "'a'"),
        ("my.csv", "text,label\na,x\n", ", template=alpaca", "FP3019", "'output'"),
        ("my.csv", "text,label\na,x\n", ", messages=chat", "FP3018", "'chat'"),
    ],
)
def test_a_column_that_a_table_lacks_is_told_of_the_file_and_of_no_line(
    tmp_path, name, content, settings, code, column
):
    path = write(tmp_path, name, content)
    with refuses(code, "my", column) as caught:
        load_dataset(f"file(path={path!r}{settings})")
    assert str(caught.value).startswith(f"{code} {path} ")


@pytest.mark.parametrize(("content", "told"), [("text,label\na,x\nb\n", False), ("text,label\na,x\nb, c,y\n", True)])
def test_only_a_line_of_too_many_fields_may_lack_quotes(tmp_path, content, told):
    with refuses("FP3117") as caught:
        load_dataset(f"file:{write(tmp_path, 'my.csv', content)}")
    assert has_error(str(caught.value), "FP3117", "','") is told


@pytest.mark.parametrize(("settings", "told"), [("", True), (", label_type=class", False)])
def test_rows_of_one_class_each_are_told_nothing_of_several_labels(tmp_path, settings, told):
    path = write(tmp_path, "my.csv", "text,label\na,x\nb,\n")
    with refuses("FP3062") as caught:
        load_dataset(f"file(path={path!r}{settings})")
    assert has_error(str(caught.value), "FP3062", "label_type=labels") is told


def test_a_column_of_another_name_is_named_where_the_rows_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.csv", "comment,verdict\na,x\nb,y\n")
    with refuses("FP3155", "comment, verdict", f'"file(path={path!r}, text=COLUMN)"', "owner=COLUMN"):
        load_dataset(f"file:{path}")  # in quotes, since a shell interprets brackets
    with refuses("FP3155", 'name yours: "file(path=', "label=COLUMN)", "set label=None"):
        load_dataset(f"file(path={path!r}, text=comment)")
    with refuses("FP3155", "legal: comment, verdict; name yours: --label-column COLUMN"):
        build_labeled_rows(path, read_records(path), "comment", "label", None)


def test_class_names_that_are_numbers_are_sorted_by_value(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.csv", "text,label\na,10\nb,9\nc,2\n")
    assert build_labeled_rows(path, read_records(path), "text", "label", None)[1] == ("2", "9", "10")


def test_one_column_of_several_labels_may_have_a_name_with_a_plus(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.csv", "text,cold + wet\na,cold;wet\nb,wet\n")
    rows, names = build_labeled_rows(path, read_records(path), "text", "cold + wet", ("cold", "wet"), "labels")
    assert names == ("cold", "wet")
    assert rows.labels is not None
    assert rows.labels.tolist() == [[1, 1], [0, 1]]
    columns = write(tmp_path, "columns.csv", "text,cold,wet\na,1,1\nb,0,1\n")
    apart, _ = build_labeled_rows(columns, read_records(columns), "text", "cold + wet", ("cold", "wet"), "labels")
    assert apart.labels is not None
    assert apart.labels.tolist() == [[1, 1], [0, 1]]


def test_unseen_test_labels_and_directories_are_one_sentence(tmp_path: Path) -> None:
    path, other = write(tmp_path, "my.csv", GOOD), write(tmp_path, "test.csv", "text,label\na,z\n")
    with refuses("FP3074", "1", "z"):
        load_dataset(f"file(path={path!r}, test={other!r})")
    (tmp_path / "folder.csv").mkdir()
    with refuses("FP3111"):
        load_dataset(f"file:{tmp_path / 'folder.csv'}")


# The hub, which tests never reach: a stand-in for the `datasets` library, and the library itself on local files


class NotFoundError(FileNotFoundError):
    pass


class DatasetsError(Exception):
    pass


def while_making_rows() -> DatasetsError:
    """Return the datasets library's error for a full disk while it generates examples."""
    error = DatasetsError("An error occurred while generating the dataset")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


class Split(list[dict[str, object]]):
    features = {"sentence": None, "label": SimpleNamespace(names=["neg", "pos"])}  # noqa: RUF012


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Return the results, or errors, of the fake load_dataset by name."""
    answers: dict[str, object] = {}

    def load(name: str, subset: str | None, revision: str | None) -> object:
        answer = answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer

    library = ModuleType("datasets")
    library.load_dataset = load  # type: ignore[attr-defined]
    library.exceptions = SimpleNamespace(  # type: ignore[attr-defined]
        DatasetNotFoundError=NotFoundError, DatasetsError=DatasetsError
    )
    library.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "datasets", library)
    return answers


def test_hub_rows_and_class_names(hub: dict[str, object]) -> None:
    rows = Split({"sentence": f"text {i}", "label": i % 2} for i in range(10))
    hub["org/name"] = {"train": rows, "validation": Split(rows[:4]), "test": Split([{"sentence": "a", "label": -1}])}
    data = load_dataset("hf(name='org/name', text=sentence, test=validation)")
    assert (data.name, data.label_names, len(data.train), len(data.test)) == ("org/name", ("neg", "pos"), 10, 4)
    with refuses("FP3041"):
        load_dataset("hf(name='org/name', text=sentence)")
    with refuses("FP3155", "text", "text", "legal: label, sentence"):
        load_dataset("hf:org/name")
    with refuses("FP1094", "dev", "legal: test, train, validation"):
        load_dataset("hf(name='org/name', text=sentence, test=dev)")
    assert len(load_dataset("hf(name='org/name', text=sentence, test=None)").test) == 2
    assert data.labels_of_rows
    named = load_dataset("hf(name='org/name', text=sentence, test=validation, labels='pos,neg')")
    assert (named.label_names, named.labels_of_rows, named.train.labels[0]) == (("pos", "neg"), False, 1)  # type: ignore[index]


def test_hub_rows_that_lack_something_are_left_out_where_that_is_said(hub: dict[str, object]) -> None:
    rows = [{"sentence": f"text {i}", "label": i % 2} for i in range(10)]
    rows += [{"sentence": "hidden", "label": -1}, {"sentence": None, "label": 0}]
    hub["org/name"] = {"train": Split(rows), "test": Split(rows[:4])}
    with refuses("FP3041", "drop"):
        load_dataset("hf(name='org/name', text=sentence)")
    data = load_dataset("hf(name='org/name', text=sentence, incomplete=drop)")
    assert (len(data.train), data.label_names) == (10, ("neg", "pos"))
    assert any("2 of 12 rows of org/name (train) are left out" in note for note in data.notes)
    hub["org/name"] = {"train": Split(rows[:10] + rows[11:]), "test": Split(rows[:4])}
    with refuses("FP3062", "empty text in the column 'sentence", "as hf(..., incomplete=drop) does"):
        load_dataset("hf(name='org/name', text=sentence)")
    pairs = [{"ask": f"question {i}", "say": f"answer {i}" if i else ""} for i in range(6)]
    hub["org/pairs"] = {"train": Split(pairs), "test": Split(pairs[1:])}
    told = load_dataset("hf(name='org/pairs', text=ask, target=say, label=None, incomplete=drop)")
    assert len(told.train) == 5
    assert any("1 of 6 rows" in note for note in told.notes)


class Tagged(list[dict[str, object]]):
    features = {"text": None, "label": SimpleNamespace(feature=SimpleNamespace(names=["wet", "cold"]))}  # noqa: RUF012


def test_lists_of_classes_have_their_names_and_what_is_hidden_or_missing_is_no_label(hub: dict[str, object]) -> None:
    rows: list[dict[str, object]] = [{"text": f"text {i}", "label": [[0], [0, 1], [1], []][i % 4]} for i in range(12)]
    hub["org/name"] = {"train": Tagged(rows), "test": Tagged(rows[:4])}
    data = load_dataset("hf:org/name")
    assert (data.task, data.label_names) == ("multi_label", ("cold", "wet"))
    assert data.test.labels.tolist() == [[0, 1], [1, 1], [1, 0], [0, 0]]  # type: ignore[union-attr]
    hub["org/name"] = {"train": Tagged([*rows, {"text": "x", "label": None}]), "test": Tagged(rows[:4])}
    with refuses("FP3062", "1 row", "no label in the column 'label"):
        load_dataset("hf:org/name")
    assert len(load_dataset("hf(name='org/name', incomplete=drop)").train) == 12
    hub["org/name"] = {"train": Tagged([*rows, {"text": "x", "label": [0, -1]}]), "test": Tagged(rows[:4])}
    for more in ("", ", label_type=labels, incomplete=drop"):
        with refuses("FP3041", "train", "org/name", "drop"):
            load_dataset(f"hf(name='org/name'{more})")
    assert len(load_dataset("hf(name='org/name', incomplete=drop)").train) == 12


def test_a_list_of_words_is_no_text_and_the_way_to_labels_of_words_is_told(hub: dict[str, object]) -> None:
    hub["org/name"] = {"train": Tagged([{"text": ["a", "b"], "label": [0, 1]}] * 8), "test": Tagged()}
    with refuses("FP3154", "['a', 'b']; join the words", "task token_labels"):
        load_dataset("hf:org/name")


@pytest.mark.parametrize(
    ("raised", "error", "words"),
    [
        (NotFoundError("x"), AssetError, ("FP2006", "org/name")),
        (ConnectionError("Couldn't reach\n'org/name'"), AssetError, ("FP2007", "Couldn't reach 'org/name")),
        (OSError(errno.ENOSPC, "No space left on device"), AssetError, ("FP2018", "the dataset")),
        (OSError("Not enough disk space. Needed: 1 GB"), AssetError, ("FP2018", "the dataset org/name")),
        (DatasetsError("An error occurred while generating"), DataError, ("FP3040", "An error occurred")),
        (while_making_rows(), AssetError, ("FP2018", "the dataset org/name")),
        (ValueError("BuilderConfig 'z' not found. Available: ['a']"), ConfigError, ("FP1093", "Available: ['a']")),
    ],
)
def test_hub_failures_are_one_sentence(
    hub: dict[str, object], raised: Exception, error: type[FedpeftError], words: tuple[str, ...]
) -> None:
    hub["org/name"] = raised
    with pytest.raises(error, match=pattern_of(*words)) as caught:
        load_dataset("hf:org/name")
    assert "\n" not in str(caught.value)


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refuses("FP1092"):
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
    with refuses("FP2007"):
        load_dataset("hf:no-such-org-of-fedpeft/no-such-name")


def test_damage_within_a_saved_data_set_is_one_sentence(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": [f"text {i}" for i in range(10, 30)]}).save_to_disk(str(tmp_path / "rows"))
    [file] = (tmp_path / "rows").glob("*.arrow")
    file.write_bytes(file.read_bytes().replace(b"text 20", b"text \xff0"))
    with refuses("FP3125", "rows", "utf-8' codec"):
        list(read_records(str(tmp_path / "rows")))


def test_rows_in_memory_are_told_apart_by_what_is_learned_of_them_and_by_those_for_validation():
    """Two such runs were one to a report, and the later one was shown."""
    given = load_dataset("tiny")
    texts = [
        create_part(made)[1]
        for made in (
            given,
            replace(given, validation=given.test),
            replace(given, validation=given.train),
            *(replace(given, task=f"dpo(beta={beta})") for beta in (0.1, 0.5)),
            *(load_dataset(f"tasks(tiny, classes=2, compete={compete})") for compete in ("task", "seen")),
        )
    ]
    assert len(set(texts)) == len(texts)
    assert texts[0] == create_part(load_dataset("tiny"))[1]

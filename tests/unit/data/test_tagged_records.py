"""Token labels from a user's files: JSON lines, Parquet and CoNLL hold the same rows; what is wrong is one sentence."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from fedpeft.commands.check import Command, check
from fedpeft.data.record_files import read_records
from fedpeft.data.rows import load_dataset
from fedpeft.data.tagged_records import index_tags
from fedpeft.wiring.auto_defaults import resolve_auto
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.refusals import refuses
from tests.tagged import LABELS, sentences, write_conll, write_jsonl

WORD = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1, max_size=6).filter(
    lambda word: word.split() == [word] and "-DOCSTART-" not in word
)


def held(data):
    """Return the words and tags of all rows, sorted."""
    rows = [json.loads(row) for part in (data.train, data.test) for row in part.inputs]
    return sorted((row["words"], [data.label_names[tag] for tag in row["tags"]]) for row in rows)


def expected(rows):
    return sorted((row["tokens"], row["ner_tags"]) for row in rows)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(st.tuples(WORD, WORD), min_size=1, max_size=6), min_size=1, max_size=6),
    sep=st.sampled_from([" ", "\t", "  "]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_sentences_come_back_from_a_conll_file(tmp_path, rows, sep, end):
    made = [{"tokens": [w for w, _ in row], "ner_tags": [t for _, t in row]} for row in rows]
    found = [record for _, record in read_records(str(write_conll(tmp_path / "t.conll", made, sep, end)))]
    assert [{name: row[name] for name in ("tokens", "ner_tags")} for row in found] == made
    assert all(set(row["column_2"]) == {"NN"} for row in found)


def test_whole_numbers_are_positions_in_given_names_or_names():
    words, digits = ("O", "NAME"), ("7", "O")
    assert index_tags(words, are_given=True) == {"O": 0, "NAME": 1, 0: 0, 1: 1}
    assert index_tags(words, are_given=False) == {"O": 0, "NAME": 1}
    assert index_tags(digits, are_given=True) == index_tags(digits, are_given=False) == {"7": 0, "O": 1, 7: 0}


def test_each_kind_of_file_holds_the_same_rows(tmp_path):
    rows = sentences(40)
    datasets = pytest.importorskip("datasets")
    write_jsonl(tmp_path / "t.jsonl", rows)
    for suffix in ("conll", "iob", "bio"):
        write_conll(tmp_path / f"t.{suffix}", rows)
    names = datasets.Features({"tokens": datasets.List(datasets.Value("string")),
                               "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-NAME"]))})  # fmt: skip
    made = datasets.Dataset.from_list(rows, features=names)
    made.to_parquet(str(tmp_path / "t.parquet"))
    made.save_to_disk(str(tmp_path / "saved"))
    for name in ("t.jsonl", "t.conll", "t.iob", "t.bio", "t.parquet", "saved"):
        data = load_dataset(f"file:{tmp_path / name}")
        assert (data.task, data.label_names, data.default_model) == ("token_labels", LABELS, "minilm"), name
        assert held(data) == expected(rows), name
        assert len(data.test) == 8
        assert any("token labels: the words of the column 'tokens'" in note for note in data.notes)


def test_columns_and_names_are_the_users_own(tmp_path):
    rows = [{"w": row["tokens"], "t": [int(tag == "O") for tag in row["ner_tags"]]} for row in sentences(20)]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    found = load_dataset(f"file(path={str(path)!r}, text=w, label=t, labels='B-NAME,O')")
    assert (found.label_names, held(found)) == (LABELS, expected(sentences(20)))
    assert not found.labels_of_rows
    numbered = load_dataset(f"file(path={str(path)!r}, text=w, label=t)")
    assert numbered.label_names == ("0", "1")
    assert numbered.train.inputs == found.train.inputs
    conll = write_conll(tmp_path / "t.conll", sentences(20))
    with refuses("FP3191", "'NN'"):
        load_dataset(f"file(path={str(conll)!r}, label=column_2)")
    owned = write_jsonl(tmp_path / "o.jsonl", [row | {"site": f"s{i % 3}"} for i, row in enumerate(sentences(30))])
    assert set(load_dataset(f"file:{owned}").train.owners) == {"s0", "s1", "s2"}


def test_a_file_for_each_client_and_splits_are_read(tmp_path):
    for name, seed in (("train", 0), ("test", 1)):
        write_conll(tmp_path / f"{name}.conll", sentences(12, seed))
    data = load_dataset(f"file:{tmp_path}")
    assert (len(data.train), len(data.test)) == (12, 12)
    (tmp_path / "own").mkdir()
    for name in ("north", "south"):
        write_conll(tmp_path / "own" / f"{name}.conll", sentences(12))
    assert set(load_dataset(f"file:{tmp_path / 'own'}").train.owners) == {"north", "south"}


GOOD = {"tokens": ["a", "b"], "ner_tags": ["O", "X"]}


@pytest.mark.parametrize(
    ("rows", "more", "words"),
    [
        ([GOOD, GOOD | {"tokens": ["a"]}], "", ("FP3189", "line 2", "t.jsonl", 1, "'tokens'", 2, "'ner_tags'")),
        ([GOOD, GOOD | {"ner_tags": []}], "", ("FP3189", "line 2", 2, "'tokens'", 0)),
        ([GOOD, GOOD | {"tokens": [1, 2]}], "", ("FP3187", "line 2", "'tokens'", "[1, 2]")),
        ([GOOD, GOOD | {"tokens": "a b"}], "", ("FP3187", "line 2", "'tokens'", "'a b'")),
        ([GOOD, GOOD | {"ner_tags": [["O"], 1]}], "", ("FP3188", "line 2", "'ner_tags'")),
        ([GOOD, {"tokens": ["a"]}], "", ("FP3006", "line 2", "'ner_tags'")),
        ([GOOD, GOOD | {"tokens": []}], "", ("FP3062", 1, "'tokens'", "line 2")),
        ([GOOD, GOOD | {"tokens": ["\ud800", "b"]}], "", ("FP3190", "line 2", "'tokens'")),
        ([GOOD] * 4, ", labels='O,B-X'", ("FP3192", 1, "'X'")),
        ([GOOD | {"ner_tags": [0, 5]}] * 4, ", labels='O,X'", ("FP3192", 1, "'5'")),
        ([GOOD | {"ner_tags": ["O", "O"]}] * 4, "", ("FP3191", "'O'")),
    ],
)
def test_rows_of_another_form_are_one_sentence(tmp_path, rows, more, words):
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    with refuses(*words) as caught:
        load_dataset(f"file(path={str(path)!r}{more})")
    assert "\n" not in str(caught.value)


def test_incomplete_rows_may_be_left_out(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [*sentences(10), {"tokens": [], "ner_tags": []}])
    data = load_dataset(f"file(path={str(path)!r}, incomplete=drop)")
    assert len(data.train) + len(data.test) == 10
    assert any("1 of 11 rows" in note for note in data.notes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ("FP3114", "t.conll")),
        ("-DOCSTART- O\n\n", ("FP3114", "t.conll")),
        ("a O\nb\n", ("FP3178", "line 2", "t.conll", "'b'")),
        ("a O\n\nb NN O\n", ("FP3179", "line 3", 3, 2)),
        ("a\t\tO\n", ("FP3178", "line 1", "t.conll")),
    ],
)
def test_a_wrong_conll_file_is_one_sentence(tmp_path, content, words):
    path = tmp_path / "t.conll"
    path.write_text(content)
    with refuses(*words):
        load_dataset(f"file:{path}")


def test_tags_of_test_rows_occur_in_training(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", sentences(10))
    test = write_jsonl(tmp_path / "test.jsonl", [{"tokens": ["x"], "ner_tags": ["B-NEW"]}])
    with refuses("FP3192", "1", "'B-NEW'"):
        load_dataset(f"file(path={str(train)!r}, test={str(test)!r})")


def test_check_counts_words_by_label_and_a_run_starts_its_head_at_zero(tmp_path):
    path = write_conll(tmp_path / "t.conll", sentences(60))
    console = Console(record=True, width=200, file=io.StringIO())
    check(Command(str(path), model="tiny", picture=tmp_path / "c.svg"), console)
    told = console.export_text()
    data = load_dataset(f"file:{path}")
    tags = np.concatenate([json.loads(row)["tags"] for row in data.test.inputs])
    assert f"{(tags == 1).sum():,}" in next(line for line in told.splitlines() if "test" in line)
    assert "token labels" in told
    config = resolve_auto(parse_run(RunConfig(dataset=f"file:{path}", peft="lora")), "").config
    assert (config.head, config.partition) == ("zero", "iid")
    assert (
        resolve_auto(parse_run(RunConfig(dataset=f"file:{tmp_path / 'gone.csv'}", peft="lora"))).config.head == "ridge"
    )

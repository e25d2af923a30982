"""Rows that lack something: all are counted before they are refused, or left out where that is asked for."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from fedpeft.commands.check import main as check
from fedpeft.data import user_rows
from fedpeft.data.incomplete_rows import find_missing
from fedpeft.data.rows import load_dataset
from fedpeft.data.text_column import TextColumn, TextWriter
from fedpeft.data.user_rows import Names, read
from fedpeft.machine import growing_array
from tests.refusals import refuses

ROWS = [{"comment": f"text {i}", "verdict": "ab"[i % 2], "owner": f"p{i % 3}"} for i in range(60)]
LACKING = {9: {"verdict": ""}, 20: {"verdict": " "}, 30: {"comment": ""}, 41: {"verdict": "", "owner": ""}}
COLUMNS = "text=comment, label=verdict, owner=owner"


def messy(lacking=LACKING, rows=ROWS):
    return [{**row, **lacking.get(i, {})} for i, row in enumerate(rows)]


def table(path, rows):
    with path.open("w", newline="") as stream:
        made = csv.DictWriter(stream, rows[0])
        made.writeheader()
        made.writerows(rows)
    return path


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_value_that_a_record_lacks_is_found_with_its_role():
    record = {"text": " ", "toxic": 0, "insult": None, "owner": "p1"}
    needs = {"text": "text", "label": "toxic + insult + threat", "owner": "owner"}
    assert find_missing(record, needs) == [("text", "text"), ("label", "insult"), ("label", "threat")]
    assert find_missing({"toxic + insult": 0.0}, {"label": "toxic + insult"}) == []
    assert find_missing({"a": [], "b": float("nan")}, {"text": "a", "label": "a", "owner": "b"}) == [
        ("text", "a"), ("owner", "b")]  # fmt: skip


def test_check_and_runs_count_the_rows_that_lack_something(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "messy.csv", messy())
    assert check([f"file(path='messy.csv', {COLUMNS})"]) == 2
    assert capsys.readouterr().err.strip() == (
        "error: FP3062 messy.csv: 3 rows have no label in the column 'verdict' (lines 11, 22, 43), 1 has an empty text "
        "in the column 'comment' (line 32), 1 has no owner in the column 'owner' (line 43); fill them in, or leave the "
        "rows out, as file(..., incomplete=drop) does; label_type=labels accepts rows with several labels or none"
    )
    assert check([f"file(path='messy.csv', {COLUMNS}, incomplete=drop)", "--model", "tiny"]) in (0, 1)
    said = capsys.readouterr().out
    assert "4 of 60 rows of messy.csv are left out: no label 3, empty text 1, no owner 1" in said
    assert "incomplete=drop" in said.split("a run ")[1]


def test_of_many_rows_a_few_are_named(tmp_path):
    path = table(tmp_path / "a.csv", messy({i: {"verdict": ""} for i in range(20, 1, -1)}))
    with refuses("FP3062", "19 rows have no label", "(lines 4, 5, 6, 7, 8 and 14 more)", "fill them in"):
        load_dataset(f"file(path={str(path)!r}, {COLUMNS})")
    (tmp_path / "folder").mkdir()
    table(tmp_path / "folder" / "ann.csv", messy({3: {"verdict": ""}}))
    table(tmp_path / "folder" / "bob.csv", messy({4: {"verdict": ""}}))
    with refuses("FP3062", "2 rows have no label", "(line 5 of ann.csv, line 6 of bob.csv)"):
        load_dataset(f"file(path={str(tmp_path / 'folder')!r}, text=comment, label=verdict)")


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize("write", [table, lines])
def test_what_is_left_is_what_a_file_without_those_rows_holds(write, place, tmp_path, monkeypatch):
    if place == "disk":
        monkeypatch.setattr(user_rows, "TextWriter", lambda: TextWriter(held=-1))
        monkeypatch.setattr(growing_array, "PIECE", 64)
        monkeypatch.setattr(growing_array, "ROWS", 7)
    suffix = "csv" if write is table else "jsonl"
    all_rows, whole = write(tmp_path / f"messy.{suffix}", messy()), tmp_path / f"whole.{suffix}"
    write(whole, [row for i, row in enumerate(ROWS) if i not in LACKING])
    found = load_dataset(f"file(path={str(all_rows)!r}, {COLUMNS}, incomplete=drop)")
    expected = load_dataset(f"file(path={str(whole)!r}, {COLUMNS})")
    for name in ("train", "test"):
        own, other = getattr(found, name), getattr(expected, name)
        assert isinstance(own.inputs, TextColumn) == (place == "disk")
        assert list(own.inputs) == list(other.inputs)
        np.testing.assert_array_equal(own.labels, other.labels)
        np.testing.assert_array_equal(own.owners, other.owners)


def test_rows_of_each_split_are_left_out_and_said(tmp_path):
    train = table(tmp_path / "train.csv", messy())
    test = table(tmp_path / "test.csv", messy({0: {"comment": " "}}, ROWS[:10]))
    asked = f"file(path={str(train)!r}, test={str(test)!r}, {COLUMNS}"
    with refuses("FP3062", "train.csv", "3 rows"):
        load_dataset(asked + ")")
    found = load_dataset(asked + ", incomplete=drop)")
    assert (len(found.train), len(found.test)) == (56, 9)
    assert [note.partition(" of ")[0] for note in found.notes] == ["4", "1"]
    assert found.notes[1] == f"1 of 10 rows of {test} are left out: empty text 1"
    assert load_dataset(asked.replace(str(train), str(test)).replace("owner=owner", "incomplete=drop") + ")").notes


def test_rows_of_json_may_lack_a_column_where_they_are_left_out(tmp_path):
    rows = messy()
    del rows[5]["verdict"], rows[7]["comment"]
    rows[8]["comment"], rows[11]["verdict"] = None, float("nan")
    path = lines(tmp_path / "a.jsonl", rows)
    found = load_dataset(f"file(path={str(path)!r}, {COLUMNS}, incomplete=drop)")
    assert "8 of 60 rows" in found.notes[0]
    assert found.notes[0].endswith("are left out: no label 5, empty text 3, no owner 1")
    with refuses("FP3155", "line 6 of", "verdict"):
        load_dataset(f"file(path={str(path)!r}, {COLUMNS})")
    with refuses("FP3063", "60 rows have no label in the column 'y", "comment"):
        load_dataset(f"file(path={str(path)!r}, text=comment, label=y, incomplete=drop)")


def test_a_column_that_a_table_lacks_is_no_lack_of_its_rows(tmp_path):
    path = table(tmp_path / "a.csv", messy({0: {"verdict": ""}}))
    for more in ("", ", incomplete=drop"):
        with refuses("FP3155", "a.csv", "body", "text"):
            load_dataset(f"file(path={str(path)!r}, text=body, label=verdict{more})")
    with refuses("FP1227", "incomplete", "'drop'", "'skip'"):
        load_dataset(f"file(path={str(path)!r}, {COLUMNS}, incomplete=skip)")


PAIR = {"input": "a b", "target": "c d"}
ALPACA = {"instruction": "Add.", "input": "1, 1", "output": "2"}
TURNS = {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}
PREFERENCE = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("row", "lacking", "words"),
    [
        (
            PAIR,
            {"target": ""},
            ("FP3062", "2 rows have no answer in the column 'target' (lines 11, 12)", "fill them in"),
        ),
        (
            PAIR,
            {"input": " "},
            ("FP3062", "2 rows have an empty text in the column 'input' (lines 11, 12)", "fill them in"),
        ),
        (
            ALPACA,
            {"output": None},
            ("FP3062", "2 rows have no answer in the column 'output' (lines 11, 12)", "fill them in"),
        ),
        (
            TURNS,
            {"messages": []},
            ("FP3062", "2 rows have an empty text in the column 'messages' (lines 11, 12)", "fill them in"),
        ),
        (
            {"prompt": "a", "completion": "b"},
            {"completion": ""},
            ("FP3062", "2 rows have no answer in the column 'completion' (lines 11, 12)", "fill them in"),
        ),
        (
            PREFERENCE,
            {"rejected": ""},
            ("FP3062", "2 rows have no answer in the column 'rejected' (lines 11, 12)", "fill them in"),
        ),
        (
            PREFERENCE,
            {"prompt": ""},
            ("FP3062", "2 rows have an empty text in the column 'prompt' (lines 11, 12)", "fill them in"),
        ),
        (
            {"text": "a", "label": None, "wet": 1, "loud": 0},
            {"loud": ""},
            ("FP3062", "2 rows have no label in the column 'loud' (lines 11, 12)", "fill them in"),
        ),
    ],
)
def test_each_kind_of_rows(row, lacking, words, tmp_path):
    path = lines(tmp_path / "a.jsonl", [row] * 10 + [row | lacking] * 2 + [row | {"owner": ""}])
    labels = ", label='wet + loud'" if "wet" in row else ""
    with refuses(*words):
        load_dataset(f"file(path={str(path)!r}{labels})")
    found = load_dataset(f"file(path={str(path)!r}{labels}, incomplete=drop)")
    assert len(found.train) + len(found.test) == 11
    assert "2 of 13 rows" in found.notes[-1] or "2 of 13 rows" in found.notes[0]


def test_rows_may_have_none_of_several_labels(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"text": f"a {i}", "label": ["x"] if i % 2 else []} for i in range(20)])
    assert not any("left out" in note for note in load_dataset(f"file(path={str(path)!r}, incomplete=drop)").notes)
    path = table(tmp_path / "a.csv", [{"text": f"a {i}", "label": "x; y" if i % 2 else ""} for i in range(20)])
    found = load_dataset(f"file(path={str(path)!r}, label_type=labels, incomplete=drop)")
    assert (len(found.train) + len(found.test), found.notes) == (20, ())


def test_of_many_rows_that_are_left_out_all_are_counted():
    rows = ((f"row {i}", {"text": "a" if i % 2 else " "}) for i in range(10_000))
    made = read("rows", rows, Names("text", None, None, incomplete="drop"))
    assert (len(made.texts), made.left_out) == (5000, "5,000 of 10,000 rows of rows are left out: empty text 5,000")

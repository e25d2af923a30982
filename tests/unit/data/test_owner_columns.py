"""A column that says whose row it is is found by its name, and reported."""

from __future__ import annotations

import json

import pytest

from fedpeft.data.rows import load_dataset
from tests.refusals import refuses


def write(path, header, rows):
    path.write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")
    return str(path)


def rows_of(owner="h", count=20):
    return [(f"text {i}", "ab"[i % 2], f"{owner}{i % 4}") for i in range(count)]


@pytest.mark.parametrize("column", ["owner", "client", "client_id", "site", "hospital", "Hospital", "clinic", "centre"])
def test_the_column_is_found_and_reported(tmp_path, column):
    path = write(tmp_path / "t.csv", ("text", "label", column), rows_of())
    data = load_dataset(f"file:{path}")
    assert set(data.train.owners) == {"h0", "h1", "h2", "h3"}
    assert any(note.startswith(f"clients from column {column!r}") for note in data.notes)
    told = load_dataset(f"file(path={path!r}, owner={column})")
    assert told.train.inputs == data.train.inputs
    assert told.train.owners.tolist() == data.train.owners.tolist()
    assert not any("clients from column" in note for note in told.notes), "which the user knows"
    nobody = load_dataset(f"file(path={path!r}, owner=None)")
    assert nobody.train.owners is None
    assert nobody.train.inputs == data.train.inputs, "held-out rows are the same"


def test_a_column_with_another_role_is_no_owner(tmp_path):
    path = write(tmp_path / "t.csv", ("text", "client", "hospital"), rows_of())
    data = load_dataset(f"file(path={path!r}, label=client)")
    assert data.label_names == ("a", "b")
    assert any("clients from column 'hospital'" in note for note in data.notes)
    data = load_dataset(f"file(path={path!r}, text='text + hospital', label=client)")
    assert data.train.owners is None
    pairs = tmp_path / "p.jsonl"
    pairs.write_text("".join(json.dumps({"site": f"q{i}", "client": f"a{i}"}) + "\n" for i in range(9)))
    assert load_dataset(f"file(path={str(pairs)!r}, text=site, target=client)").train.owners is None


def test_several_columns_are_one_sentence_and_a_named_one_wins(tmp_path):
    path = write(
        tmp_path / "t.csv", ("text", "label", "site", "client"), [(*row, f"c{i}") for i, row in enumerate(rows_of())]
    )
    with refuses("FP3181", "site, client", "owner=site", "owner=client", "owner=None"):
        load_dataset(f"file:{path}")
    data = load_dataset(f"file(path={path!r}, owner=client)")
    assert len(set(data.train.owners)) > 4


def test_rows_without_owners_stay_as_they_are(tmp_path):
    path = write(tmp_path / "t.csv", ("text", "label", "shop"), rows_of())
    data = load_dataset(f"file:{path}")
    assert (data.train.owners, data.notes) == (None, ())
    path = write(tmp_path / "u.csv", ("text", "label", "owners"), rows_of())
    assert load_dataset(f"file:{path}").train.owners is None


def test_test_rows_may_belong_to_nobody_and_a_blank_owner_is_told(tmp_path):
    train = write(tmp_path / "train.csv", ("text", "label", "hospital"), rows_of())
    test = write(tmp_path / "test.csv", ("text", "label"), [("x", "a"), ("y", "b")])
    data = load_dataset(f"file(path={train!r}, test={test!r})")
    assert (len(data.test), data.test.owners) == (2, None)
    blank = write(tmp_path / "b.csv", ("text", "label", "hospital"), [*rows_of(), ("z", "a", "")])
    with refuses("FP3062", 1, "'hospital'", "line 22", "owner=None"):
        load_dataset(f"file:{blank}")


def test_the_error_that_lists_columns_shows_owner(tmp_path):
    path = write(tmp_path / "t.csv", ("note", "label", "ward"), rows_of())
    with refuses("FP3155", "'text'", "label, note, ward", "owner=COLUMN"):
        load_dataset(f"file:{path}")


def test_a_folder_of_clients_files_goes_by_its_files(tmp_path):
    for name in ("north", "south"):
        write(tmp_path / f"{name}.csv", ("text", "label", "hospital"), rows_of())
    assert set(load_dataset(f"file:{tmp_path}").train.owners) == {"north", "south"}

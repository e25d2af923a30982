"""Rows on disk: the same texts, the same splits and the same tokens as in memory, to the last bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.data import text_column, user_rows
from fedpeft.data.cached_rows import convert_to_arrays, hash_rows
from fedpeft.data.inspection import check_rows
from fedpeft.data.rows import load_dataset, split_off_validation
from fedpeft.data.text_column import TextColumn, TextWriter, join_texts, take_texts
from fedpeft.machine import growing_array
from fedpeft.machine.growing_array import GrowingArray
from fedpeft.machine.mapped_files import iterate_pieces
from fedpeft.models.base_model import resolve_model
from fedpeft.parts.families import PARTITIONS, TASKS


def on_disk(texts: list[str], held: int = -1) -> TextColumn:
    writer = TextWriter(held=held)
    for text in texts:
        writer.append(text)
    assert len(writer) == len(texts)
    column = writer.create_column()
    assert isinstance(column, TextColumn)
    return column


@pytest.mark.medium
@given(st.lists(st.text(), min_size=1, max_size=30), st.lists(st.text(), max_size=10), st.data())
@settings(max_examples=25, deadline=None)
def test_a_column_is_the_list_of_its_texts(texts: list[str], more: list[str], data: st.DataObject) -> None:
    column = on_disk(texts)
    assert list(column) == texts
    assert [column[i] for i in range(-len(texts), len(texts))] == [texts[i] for i in range(-len(texts), len(texts))]
    assert list(column[1:5]) == texts[1:5]
    indices = np.array(data.draw(st.lists(st.integers(0, len(texts) - 1))), np.int64)
    chosen = [texts[i] for i in indices]
    assert list(take_texts(column, indices)) == chosen
    assert list(join_texts(column, more)) == texts + more
    assert list(join_texts(more, column)) == more + texts
    assert list(join_texts(take_texts(column, indices), join_texts(column, more))) == chosen + texts + more
    with pytest.raises(IndexError):
        column[len(texts)]


def test_texts_that_lie_far_apart_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{i} " + "x" * 100 for i in range(500)]
    monkeypatch.setattr(text_column, "PIECE", 0)
    column = on_disk(texts)
    assert list(column.take(np.array([499, 0, 250]))) == [texts[499], texts[0], texts[250]]


def test_half_characters_come_back() -> None:
    assert list(on_disk(["a\ud800b", ""])) == ["a\ud800b", ""]


@given(
    st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=20), max_size=20), st.sampled_from([0, 40, 1 << 20])
)
@settings(max_examples=25, deadline=None)
def test_a_spool_is_what_was_appended(parts: list[list[int]], held: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(growing_array, "HELD", held)
        spool = GrowingArray(np.int32)
        for part in parts:
            spool.append(part)
        array = spool.create_array()
    expected = [value for part in parts for value in part]
    assert array.tolist() == expected
    assert array.dtype == np.int32
    assert [value for piece in iterate_pieces(array) for value in piece.tolist()] == expected


def written(folder, rows: int, name: str):
    random, path = np.random.default_rng(3), folder / name
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            kind = int(random.integers(3))
            text = " ".join(f"w{word}" for word in random.integers(kind * 40, kind * 40 + 60, random.integers(2, 12)))
            row = {"text": text, "label": f"class {kind}", "owner": f"owner {i % 11}", "number": kind + random.random()}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch):
    """Texts and tokens go to disk from the first on."""

    def stream() -> None:
        monkeypatch.setattr(user_rows, "TextWriter", lambda: TextWriter(held=-1))
        monkeypatch.setattr(growing_array, "HELD", 0)

    return stream


@pytest.mark.parametrize("label", ["label", "None", "number"])
def test_rows_on_disk_are_split_and_tokenised_as_in_memory(tmp_path, streamed, label: str) -> None:
    path = written(tmp_path, 120, "rows.jsonl")
    text = f"file(path='{path}', label={label}, owner=owner)"

    def everything() -> list:
        data = load_dataset(text)
        train, held = split_off_validation(data)
        folder = resolve_model("tiny_lm" if label == "None" else "tiny")
        made = convert_to_arrays(TASKS.build(data.task).tokenise(train, folder, 8))
        shards = [PARTITIONS.build(name).split(train, 5, 7) for name in ("natural", "grouped", "iid")]
        return [
            [hash_rows(rows) for rows in (train, held, data.test)],
            {name: (array.dtype, array.tolist()) for name, array in made.items()},
            [shard.shard(k).tolist() for shard in shards for k in range(5)],
            [
                None if rows.owners is None else np.unique(rows.owners, return_inverse=True)[1].tolist()
                for rows in (train, held)
            ],
            check_rows(data),
            (data.task, data.label_names, data.notes),
        ], data

    expected, in_memory = everything()
    assert isinstance(in_memory.train.inputs, list)
    streamed()
    found, data = everything()
    assert isinstance(data.train.inputs, TextColumn)
    assert found == expected


@pytest.mark.parametrize("columns", [("instruction", "output"), ("prompt", "chosen", "rejected")])
def test_answers_on_disk_are_tokenised_as_in_memory(tmp_path, streamed, columns: tuple[str, ...]) -> None:
    path, template = tmp_path / "rows.jsonl", tmp_path / "own.jinja"
    lines = ({name: f"{name} " + "word " * (i % 7) + str(i) for name in columns} for i in range(40))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    template.write_text("asked: {{ instruction }} said: ", encoding="utf-8")

    def arrays():
        data = load_dataset(f"file(path='{path}', template='{template}')")
        made = TASKS.build(data.task).tokenise(data.train, resolve_model("tiny_lm"), 64)
        return {name: (array.dtype, array.tolist()) for name, array in convert_to_arrays(made).items()}

    expected = arrays()
    streamed()
    assert arrays() == expected


def test_cached_arrays_of_a_file_are_those_of_numpy(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedpeft.machine import cache

    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path))
    monkeypatch.setattr(growing_array, "HELD", 0)
    spool = GrowingArray(np.int32)
    spool.append(np.arange(700_000))  # more than a piece
    made = cache.load_arrays("rows", "x", lambda: {"mapped": spool.create_array(), "plain": np.arange(3)})
    assert np.array_equal(made["mapped"], np.arange(700_000, dtype=np.int32))
    assert made["plain"].tolist() == [0, 1, 2]

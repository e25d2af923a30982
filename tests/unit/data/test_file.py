"""Users' own files and folders, in every format: what is read, what is told, what is refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc

import numpy as np
import pytest

from fedpeft.data.instruction_columns import choose_reading
from fedpeft.data.record_files import CONLL, SUFFIXES, read_records
from fedpeft.data.rows import load_dataset, split_off_validation
from tests.refusals import refuses

ROWS = [{"text": f"text {i} ü", "label": ("neg", "pos")[i % 2], "who": f"p{i % 3}"} for i in range(20)]
TEXT_SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json")


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def content(suffix, rows=ROWS):
    """Return the bytes of a file with these rows."""
    if suffix in (".csv", ".tsv", ".tab"):
        stream = io.StringIO()
        writer = csv.DictWriter(stream, rows[0], delimiter="," if suffix == ".csv" else "\t")
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue().encode()
    if suffix == ".json":
        return json.dumps(rows, indent=1).encode()
    if suffix in (".jsonl", ".ndjson"):
        return lines(rows).encode()
    pa = pytest.importorskip("pyarrow")
    table, stream = pa.Table.from_pylist(rows), io.BytesIO()
    if suffix in (".parquet", ".pq"):
        from pyarrow import parquet

        parquet.write_table(table, stream)
    else:
        new = pa.ipc.new_file if suffix == ".feather" else pa.ipc.new_stream
        with new(stream, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    return stream.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix not in CONLL])
def test_every_format_holds_the_same_rows(suffix, gz, tmp_path):
    data = content(suffix)
    path = write(tmp_path / f"my{suffix}{'.gz' if gz else ''}", gzip.compress(data) if gz else data)
    found = list(read_records(str(path)))
    assert [record for _, record in found] == ROWS
    assert found[0][0].split()[0] in ("line", "row")
    loaded = load_dataset(f"file(path={str(path)!r}, owner=who)")
    assert loaded.label_names == ("neg", "pos")
    assert sorted([*loaded.train.inputs, *loaded.test.inputs]) == sorted(row["text"] for row in ROWS)


def test_a_json_file_may_have_an_object_a_line(tmp_path):
    assert [r for _, r in read_records(str(write(tmp_path / "my.json", lines(ROWS))))] == ROWS


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.json", "[1]", ("FP3121", "1")),
        ("a.json", '[{"text": ', ("FP3038",)),
        ("a.json", "  \n", ("FP3114",)),
        ("a.csv.gz", b"text,label\n", ("FP3113",)),
        ("a.csv.gz", gzip.compress(b"text,label\na,b\n", mtime=0)[:-9], ("FP3113",)),
        ("a.jsonl", '{"text": "a", "label": {"x": 1}}\n', ("FP3066", "a word or an integer")),
        ("a.jsonl", '{"text": "a", "label": 1.0}\n', ("FP3071",)),
    ],
)
def test_a_damaged_file_is_one_sentence(name, data, words, tmp_path):
    with refuses(*words) as caught:
        load_dataset(f"file:{write(tmp_path / name, data)}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_damaged_columns_are_one_sentence(suffix, tmp_path):
    pytest.importorskip("pyarrow")
    cut = "FP3037" if suffix == ".arrow" else "FP3123"  # the beginning of an Arrow file is a table
    for data, code in ((b"", "FP3123"), (b"not a table at all", "FP3123"), (content(suffix)[:-40], cut)):
        with refuses(code, f"a{suffix}") as caught:
            load_dataset(f"file:{write(tmp_path / f'a{suffix}', data)}")
        assert "\n" not in str(caught.value)


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    path = write(tmp_path / "a.parquet", b"PAR1")
    with refuses("FP1109", "Parquet", "pyarrow"):
        load_dataset(f"file:{path}")
    write(tmp_path / "saved" / "state.json", "{}")
    with refuses("FP1109", "save_to_disk", "datasets"):
        load_dataset(f"file:{tmp_path / 'saved'}")


def test_saved_data_sets_single_and_split(tmp_path):
    datasets = pytest.importorskip("datasets")
    classes = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(20)]

    def made(count):
        table = datasets.table.InMemoryTable.from_pylist(rows[:count], schema=classes.arrow_schema)
        return datasets.Dataset(table, datasets.DatasetInfo(features=classes), fingerprint=f"made{count}")

    single = made(20)
    single.save_to_disk(str(tmp_path / "single"))
    assert load_dataset(f"file:{tmp_path / 'single'}").label_names == ("no", "yes")
    splits = datasets.DatasetDict(train=single, validation=made(6), test=made(4))
    splits.save_to_disk(str(tmp_path / "split"))
    found = load_dataset(f"file:{tmp_path / 'split'}")
    assert (len(found.train), len(found.validation), len(found.test)) == (20, 6, 4)
    assert found.notes == (f"rows of train, validation, test in {tmp_path / 'split'}",)
    single.to_parquet(str(tmp_path / "a.parquet"))
    assert load_dataset(f"file:{tmp_path / 'a.parquet'}").label_names == ("no", "yes")  # of the schema


def test_own_validation_rows_are_those_of_the_run(tmp_path):
    for name, count in (("train", 20), ("dev", 6), ("test", 4)):
        write(tmp_path / f"{name}.csv", content(".csv", ROWS[:count]))
    found = load_dataset(f"file:{tmp_path}")
    train, held = split_off_validation(found)
    assert (len(train), len(held), len(found.test)) == (20, 6, 4)
    assert list(held.inputs) == [row["text"] for row in ROWS[:6]]
    train, held = split_off_validation(load_dataset(f"file(path={str(tmp_path / 'train.csv')!r})"))
    assert len(train) + len(held) == 16  # a fifth is for test
    named = f"file(path={str(tmp_path / 'train.csv')!r}, validation={str(tmp_path / 'test.csv')!r})"
    assert len(split_off_validation(load_dataset(named))[1]) == 4
    write(tmp_path / "val.csv", content(".csv"))
    with refuses("FP3127", "validation", "dev.csv, val.csv"):
        load_dataset(f"file:{tmp_path}")


def test_labels_of_validation_rows_must_be_known(tmp_path):
    write(tmp_path / "train.csv", content(".csv"))
    write(tmp_path / "dev.csv", "text,label\na,other\n")
    with refuses("FP3074", "other"):
        load_dataset(f"file:{tmp_path}")


def test_a_file_for_each_client(tmp_path):
    for client in ("ann", "bob", "cy"):
        write(tmp_path / f"{client}.jsonl", content(".jsonl"))
    found = load_dataset(f"file:{tmp_path}")
    assert set(found.train.owners) == {"ann", "bob", "cy"}
    assert "--partition natural" in found.notes[0]
    assert set(load_dataset(f"file(path={str(tmp_path)!r}, owner=who)").train.owners) == {"p0", "p1", "p2"}
    write(tmp_path / "bob.jsonl", '{"text": "a"}\n')
    with refuses("FP3155", "line 1 of bob.jsonl of", "label"):
        load_dataset(f"file:{tmp_path}")
    (tmp_path / "bob.jsonl").unlink()
    write(tmp_path / "bob.csv", "text\na\n")
    with refuses("FP3155", "bob.csv of", "label"):
        load_dataset(f"file:{tmp_path}")
    write(tmp_path / "ann.csv", content(".csv"))
    with refuses("FP3130", "'ann'"):
        load_dataset(f"file:{tmp_path}")


def test_an_empty_folder_is_one_sentence(tmp_path):
    with refuses("FP3129"):
        load_dataset(f"file:{tmp_path}")


def test_two_columns_make_one_text(tmp_path):
    rows = [{"premise": f"a {i}", "hypothesis": "b", "label": i % 2} for i in range(10)]
    path = write(tmp_path / "nli.jsonl", lines(rows))
    found = load_dataset(f"file(path={str(path)!r}, text='premise + hypothesis')")
    assert "premise: a 0 hypothesis: b" in [*found.train.inputs, *found.test.inputs]
    with refuses("FP3155", "no column 'answer' for the text"):
        load_dataset(f"file(path={str(path)!r}, text='premise + answer')")


TURNS = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
SHAREGPT = [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]


@pytest.mark.parametrize(
    ("row", "packed", "said"),
    [
        ({"messages": TURNS}, TURNS, "'messages' in the model's chat template"),
        ({"conversations": SHAREGPT}, TURNS, "'conversations' in the model's chat template"),
        ({"conversations": TURNS}, TURNS, "'conversations'"),
        ({"prompt": "1+1?", "completion": "2"}, {"prompt": "1+1?", "answer": "2"}, "'prompt' and 'completion', as"),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, TURNS, "the model's chat template"),
    ],
)
def test_instruction_data_are_told_by_their_columns(row, packed, said, tmp_path):
    found = load_dataset(f"file:{write(tmp_path / 'my.jsonl', lines([row] * 10))}")
    assert found.task == "instruction"
    assert json.loads(found.train.inputs[0]) == packed
    assert said in found.notes[0]


def test_alpaca_is_told_by_its_columns(tmp_path):
    row = {"instruction": "Add.", "input": "1, 1", "output": "2"}
    found = load_dataset(f"file:{write(tmp_path / 'my.json', json.dumps([row] * 10))}")
    made = json.loads(found.train.inputs[0])
    assert made["answer"] == "2"
    assert made["prompt"].endswith("### Input:\n1, 1\n\n### Response:")
    assert "prompt template alpaca" in found.notes[0]


def test_conversations_bring_the_prompt_of_their_preference(tmp_path):
    worse = [TURNS[0], {"role": "assistant", "content": "3"}]
    sides = {"chosen": TURNS, "rejected": worse}
    without = load_dataset(f"file:{write(tmp_path / 'a.jsonl', lines([sides] * 10))}")
    named = load_dataset(f"file:{write(tmp_path / 'b.jsonl', lines([sides | {'prompt': TURNS[:1]}] * 10))}")
    assert without.train.inputs[0] == named.train.inputs[0]
    assert json.loads(without.train.inputs[0]) == sides


def test_completions_in_the_models_own_template(tmp_path):
    path = write(tmp_path / "my.jsonl", lines([{"prompt": "1+1?", "completion": "2"}] * 10))
    assert json.loads(load_dataset(f"file(path={str(path)!r}, template=chat)").train.inputs[0]) == TURNS


def test_texts_come_before_instructions():
    assert choose_reading({"text": "a", "messages": TURNS}, "text", None, None, "output") is None
    assert choose_reading({"body": "a"}, "text", None, None, "output") is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, ("FP3096",)),
        ({"chosen": "b", "rejected": "c"}, ("FP3098", "prompt")),
        (
            {"chosen": [*TURNS[:1], {"role": "assistant", "content": "2"}], "rejected": [*TURNS[1:]] * 2},
            ("FP3100",),
        ),
        ({"prompt": "a", "completion": 2}, ("FP3065",)),
        ({"conversations": [{"from": "tool", "value": "b"}]}, ("FP3064", "human")),
        ({"conversations": [{"from": ["gpt"], "value": "b"}]}, ("FP3064", "human")),
        ({"conversations": [{"from": "gpt", "value": "b"}]}, ("FP3015",)),
        ({"conversations": [{"from": "human", "value": "b"}]}, ("FP3016",)),
    ],
)
def test_instruction_data_that_cannot_be_used_are_one_sentence(row, words, tmp_path):
    with refuses(*words) as caught:
        load_dataset(f"file:{write(tmp_path / 'my.jsonl', lines([row] * 10))}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["", "-00000-of-00001"])
def test_the_hubs_names_of_splits(ending, tmp_path):
    """Rows for test are not trained on."""
    for split in ("train", "validation", "test"):
        rows = [{"text": f"{split} {i}", "label": i % 2} for i in range(10)]
        write(tmp_path / "hub" / f"{split}{ending}.jsonl", lines(rows))
    found = load_dataset(f"file:{tmp_path / 'hub'}")
    assert {text.split()[0] for text in found.train.inputs} == {"train"}
    assert {text.split()[0] for text in found.test.inputs} == {"test"}


def test_the_parts_of_a_split_belong_into_a_folder_and_none_is_thrown_away(tmp_path):
    parts = [f"train-0000{k}-of-00002.jsonl" for k in range(2)]
    for k, name in enumerate(parts):
        write(tmp_path / "hub" / name, lines([{"text": f"{k} {i}", "label": i % 2} for i in range(10)]))
    write(tmp_path / "hub" / "test.jsonl", lines([{"text": f"test {i}", "label": i % 2} for i in range(10)]))
    with refuses("FP3127", "put its parts into a folder called train"):
        load_dataset(f"file:{tmp_path / 'hub'}")
    (tmp_path / "hub" / "train").mkdir()
    for name in parts:
        (tmp_path / "hub" / name).rename(tmp_path / "hub" / "train" / name)
    assert {text.split()[0] for text in load_dataset(f"file:{tmp_path / 'hub'}").train.inputs} == {"0", "1"}


def test_test_rows_without_any_for_training_are_refused(tmp_path):
    for name in ("my_rows", "test"):
        write(tmp_path / "mine" / f"{name}.jsonl", lines([{"text": f"{name} {i}", "label": i % 2} for i in range(10)]))
    with refuses("FP3128", "test.jsonl"):
        load_dataset(f"file:{tmp_path / 'mine'}")


@pytest.mark.parametrize("name", ["my.jsonl", "my.json"])
def test_a_column_that_json_names_twice_is_refused(name, tmp_path):
    row = '{"text": "a", "label": "x", "label": "y"}'
    path = write(tmp_path / name, row if name.endswith("l") else f"[{row}]")
    with refuses("FP3119" if name.endswith("l") else "FP3038", name, "'label'"):
        load_dataset(f"file:{path}")


def test_a_column_that_parquet_names_twice_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table([pa.array(["a", "b"]), pa.array(["x", "y"]), pa.array(["y", "x"])], ["text", "label", "label"])
    parquet.write_table(table, tmp_path / "my.parquet")
    with refuses("FP3122", "text, label, label"):
        load_dataset(f"file:{tmp_path / 'my.parquet'}")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": None, "output": "a"}, ("FP3102", "would write None")),
        ({"instruction": "a", "input": float("nan"), "output": "a"}, ("FP3102", "would write nan")),
        ({"instruction": TURNS, "output": "a"}, ("FP3102", "would write [{")),
        ({"instruction": " ", "input": "", "output": "a"}, ("FP3104", "instruction and input")),
    ],
)
def test_a_template_writes_no_missing_value(row, words, tmp_path):
    with refuses(*words):
        load_dataset(f"file:{write(tmp_path / 'my.jsonl', lines([row] * 10))}")


def test_what_was_read_of_a_parquet_file_is_let_go(tmp_path):
    """The read-ahead of pyarrow keeps each part of a file until the file ends."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    random = np.random.default_rng(0)
    parquet.write_table(
        pa.table({"text": [random.bytes(2000).hex() for _ in range(4000)]}),
        tmp_path / "rows.parquet",
        row_group_size=500,
    )
    size = (tmp_path / "rows.parquet").stat().st_size
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_records(tmp_path / "rows.parquet")) == 4000
        assert tracemalloc.get_traced_memory()[1] < size / 2
    finally:
        tracemalloc.stop()

"""Rows of FlowerTune tracks: whose they are, what is asked, and what of it is learned."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest

from fedpeft.data.conversations import tokenize_row
from fedpeft.data.datasets.flowertune import TRACKS, assign_clients
from fedpeft.data.made_words import WORDS
from fedpeft.data.rows import load_dataset
from fedpeft.data.tokens import load_tokenizer
from fedpeft.models.base_model import resolve_model
from fedpeft.parts.families import TASKS
from tests.refusals import refuses

TEXT = "Below is an instruction that describes a task. Write a response that appropriately completes the request."


def record(i, **more):
    return {"instruction": f"{WORDS[i]} {i}", "input": WORDS[i + 1], "output": WORDS[i + 2], **more}


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(record(i)) + "\n" for i in range(40)))
    return file


def test_shards_are_those_of_a_shuffle_cut_into_contiguous_parts():
    """By hand: of 11 rows the first two of three clients get 4, the last one 3, in the order of the permutation."""
    order = np.random.default_rng(42).permutation(11)
    client = assign_clients(11, 3, 42)
    assert [np.flatnonzero(client == k).tolist() for k in range(3)] == [
        sorted(order[:4].tolist()),
        sorted(order[4:8].tolist()),
        sorted(order[8:].tolist()),
    ]


def test_shards_are_those_of_the_library():
    """Flower's IidPartitioner shuffles with the seed 42 by itself, and asks for contiguous shards."""
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"row": list(range(103))}).shuffle(seed=42)
    client = assign_clients(103, 10, 42)
    for k in range(10):
        theirs = made.shard(10, k, contiguous=True)["row"]
        assert sorted(theirs) == np.flatnonzero(client == k).tolist()


@pytest.mark.parametrize(
    ("track", "asked"),
    [
        ("general_nlp", f"{WORDS[3]} 3"),
        ("medical", WORDS[4]),
        ("finance", f"{WORDS[3]} 3 {WORDS[4]}"),
        ("code", f"{WORDS[3]} 3 {WORDS[4]}"),
    ],
)
def test_prompts_are_those_of_the_track(track, asked, rows):
    dataset = load_dataset(f"flowertune(name={str(rows)!r}, track={track}, clients=4, test={str(rows)!r})")
    row = json.loads(dataset.train.inputs[3])
    assert row["prompt"] == f"{TEXT}\n### Instruction:\n{asked}\n### Response:"
    assert row["answer"] == " " + WORDS[5]
    assert len(dataset.train) == 40
    assert dataset.train.owners.tolist() == assign_clients(40, 4, 42).tolist()


def test_rows_that_are_held_out_leave_the_others_where_they_lie(rows):
    whole = load_dataset(f"flowertune(name={str(rows)!r}, clients=4, test={str(rows)!r})").train
    owner = dict(zip(whole.inputs, whole.owners.tolist(), strict=True))
    part = load_dataset(f"flowertune(name={str(rows)!r}, clients=4)")
    assert (len(part.train), len(part.test)) == (36, 4)
    assert not set(part.train.inputs) & set(part.test.inputs)
    assert all(owner[text] == k for text, k in zip(part.train.inputs, part.train.owners.tolist(), strict=True))


@pytest.mark.parametrize("end", [False, True])
def test_the_text_is_cut_into_tokens_as_one_and_the_answer_is_learned(end, rows):
    tokenizer = load_tokenizer(resolve_model("tiny_lm"))
    dataset = load_dataset(f"flowertune(name={str(rows)!r}, end={end})")
    for text in dataset.train.inputs[:5]:
        row = json.loads(text)
        ids, learned = tokenize_row(tokenizer, text)
        whole = tokenizer(row["prompt"] + row["answer"])["input_ids"]
        assert ids == whole + [tokenizer.eos_token_id] * end
        answer = [i for i, counts in zip(ids, learned, strict=True) if counts]
        assert tokenizer.decode(answer, skip_special_tokens=True).strip() == row["answer"].strip()
        assert answer[-1] == tokenizer.eos_token_id or not end


def test_answers_beyond_the_cut_stay_and_teach_nothing(tmp_path):
    file = tmp_path / "rows.jsonl"
    long = {"instruction": " ".join(WORDS[:60]), "input": "", "output": WORDS[0]}
    file.write_text("".join(json.dumps(record(i) if i else long) + "\n" for i in range(20)))
    dataset = load_dataset(f"flowertune(name={str(file)!r}, clients=2, test={str(file)!r})")
    task, folder = TASKS.build(dataset.task), resolve_model("tiny_lm")
    made = task.tokenise(dataset.train, folder, 48)
    labels = made.batch(range(20))["labels"]
    assert (labels[0] == -100).all()
    assert ((labels[1:] != -100).sum(1) > 0).all()
    assert made.cut == 1
    with refuses("FP3170", "1", "20"):
        TASKS.build("instruction").tokenise(dataset.train, folder, 48)
    with refuses("FP3170", "20", "20"):
        task.tokenise(dataset.train, folder, 8)


def test_a_folder_and_a_list_are_read_too(rows, tmp_path):
    listed = tmp_path / "alpaca.json"
    listed.write_text(json.dumps([record(i) for i in range(40)]))
    first = load_dataset(f"flowertune(name={str(rows.parent)!r})").train.inputs
    assert first == load_dataset(f"flowertune(name={str(listed)!r})").train.inputs


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"instruction": "a", "input": ""}'], ("FP3034", "output")),
        (['{"instruction": "a", "output": ""}'], ("FP3035", "output")),
        (['{"instruction": 3, "output": "b"}'], ("FP3035", "instruction", "3")),
        (['{"instruction": "a", "output": "b"}'], ("FP3033", "20", "1")),
        ([], ("FP3028",)),
    ],
)
def test_rows_that_can_not_be_used_are_one_sentence(lines, words, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    with refuses(*words):
        load_dataset(f"flowertune(name={str(tmp_path / 'rows.jsonl')!r})")


@pytest.mark.parametrize(("content", "code"), [("{}", "FP3039"), ("[1]", "FP3039"), ("[", "FP3038")])
def test_json_that_is_no_list_of_records_is_one_sentence(content, code, tmp_path):
    (tmp_path / "rows.json").write_text(content)
    with refuses(code, "rows.json"):
        load_dataset(f"flowertune(name={str(tmp_path / 'rows.json')!r})")


def test_a_full_disk_is_not_told_as_a_data_set_that_is_not_there(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", full)
    with refuses("FP2018", "the dataset org/name"):
        load_dataset("flowertune(name='org/name')")


def test_without_hub_or_file_it_says_what_to_give(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "datasets" else real(name, *a))
    with refuses("FP2004"):
        load_dataset("flowertune(name='flwrlabs/alpaca-gpt4')")
    with refuses("FP1227", "one of 'general_nlp', 'finance"):
        load_dataset("flowertune(name='x', track=nlp)")
    assert TRACKS["finance"] == ("flwrlabs/fingpt-sentiment-train", 50)

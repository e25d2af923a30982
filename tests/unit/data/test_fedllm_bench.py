"""FedLLM-Bench's files: each dataset is read as what it is, by client, and other layouts are refused."""

from __future__ import annotations

import json

import pytest

from fedpeft.data.datasets.clients import Clients
from fedpeft.data.made_words import WORDS
from fedpeft.data.rows import load_dataset
from tests.benchmark_files import write_chatbot_preferences, write_clients, write_wildchat
from tests.refusals import refuses

AYA = "examples/fedllm_bench/Fed-Aya/aya_3c.json"


def load(file, **settings):
    given = "".join(f", {name}={value!r}" for name, value in settings.items())
    return load_dataset(f"fedllm_bench(path={str(file)!r}{given})")


def test_instructions_are_in_alpacas_prompt():
    data = load(AYA)
    assert (data.task, data.template, len(data.train), len(data.test)) == ("instruction", "alpaca", 48, 12)
    with open(AYA) as file:
        stored = json.load(file)
    for text, owner in zip(data.train.inputs, data.train.owners, strict=True):
        row = json.loads(text)
        assert {"instruction": row["prompt"].split("\n")[3], "response": row["answer"]} in stored[owner]
    assert set(data.train.owners) == set(data.test.owners) == set(stored)


def test_conversations_begin_with_a_question(tmp_path):
    data = load(write_wildchat(tmp_path))
    assert data.task == "instruction"
    turns = {text: json.loads(text) for text in (*data.train.inputs, *data.test.inputs)}
    assert {tuple(turn["role"] for turn in row) for row in turns.values()} == {("user", "assistant") * 2}
    assert [WORDS[0], WORDS[1], WORDS[2], WORDS[3]] in [[turn["content"] for turn in row] for row in turns.values()]


def test_preferences_have_their_prompt_as_it_stands(tmp_path):
    data = load(write_chatbot_preferences(tmp_path), beta=0.2)
    assert (data.task, data.template) == ("dpo(beta=0.2)", "bare")
    assert json.loads(data.train.inputs[0])["chosen"]["prompt"] in WORDS


def test_a_record_without_an_answer_is_refused_or_left_out(tmp_path):
    records = [{"instruction": WORDS[i], "response": "" if i == 4 else WORDS[i + 1]} for i in range(20)]
    file = write_clients(tmp_path / "it.json", records)
    with refuses("FP3062", "record 2 of the client 'client_1'", "fedllm_bench(..., incomplete=drop)"):
        load(file)
    assert len(load(file, incomplete="drop").train) == 15


@pytest.mark.parametrize(
    ("content", "code", "values"),
    [
        ([{"instruction": "a", "response": "b"}], "FP3211", ["list, which --dataset file:PATH reads"]),
        ({}, "FP3028", []),
        ({"client_0": {"instruction": "a"}}, "FP3203", ["client_0"]),
        ({"client_0": ["a"]}, "FP3203", ["client_0"]),
        ({"client_0": [{"question": "a", "answer": "b"}]}, "FP3202", ["question", "answer"]),
        ({"client_0": [{"input": "a", "target": "b"}]}, "FP3202", ["input", "target"]),
    ],
)
def test_another_layout_is_refused(content, code, values, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps(content))
    with refuses(code, *values):
        load(tmp_path / "data.json")


def test_a_real_client_reads_the_file_of_one_client(tmp_path):
    """FedLLM-Bench has these files, too: local/local_ar.json holds the records of Fed-Aya's client for Arabic."""
    records = [{"instruction": WORDS[i], "response": WORDS[i + 1]} for i in range(6)]
    (tmp_path / "local_ar.json").write_text(json.dumps(records))
    form = Clients(task="instruction", label="response", template="alpaca")
    rows, names = form.read(tmp_path / "local_ar.json", None, "")
    assert (len(rows), names) == (6, ())
    assert json.loads(rows.inputs[2])["answer"] == WORDS[3]

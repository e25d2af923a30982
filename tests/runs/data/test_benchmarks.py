"""Whole runs on files in the layouts of LEAF, FedLLM-Bench, GLUE and MedQA, and their evaluation."""

from __future__ import annotations

import json

import pytest

from fedpeft.evaluate.__main__ import main as evaluate
from tests import benchmark_files
from tests.unit.data.test_exam_files import record, write_medqa

LEAF = {
    "femnist": ("tiny_vision", "accuracy"),
    "celeba": ("tiny_vision", "accuracy"),
    "shakespeare": ("tiny", "accuracy"),
    "reddit": ("tiny_lm", "perplexity"),
}


def run(finished_run, dataset, model):
    made = finished_run(
        dataset=dataset, model=model, clients=0, rounds=1, local_work="steps(2)", tokens=64,
        dtype="fp32", peft="lora(layers=1)",
    )  # fmt: skip
    return json.loads((made / "summary.json").read_text())


@pytest.mark.parametrize("name", LEAF)
def test_leaf_trains_a_client_per_user(name, finished_run, tmp_path):
    model, score = LEAF[name]
    folder = getattr(benchmark_files, f"write_{name}")(tmp_path / name)
    summary = run(finished_run, f"leaf:{folder}", model)
    assert summary["clients"] == 3
    assert summary[score] >= 0


def test_sent140_trains_a_client_per_user(finished_run):
    assert run(finished_run, "leaf:examples/leaf/sent140/data", "tiny")["clients"] == 6


@pytest.mark.parametrize("name", ["wildchat", "chatbot_preferences", "aya"])
def test_fedllm_bench_trains_a_client_per_client(name, finished_run, chat_model, tmp_path):
    file = "examples/fedllm_bench/Fed-Aya/aya_3c.json"
    if name != "aya":
        file = getattr(benchmark_files, f"write_{name}")(tmp_path / name)
    summary = run(finished_run, f"fedllm_bench:{file}", chat_model)
    assert summary["clients"] == 3
    assert summary["task"].partition("(")[0] == ("dpo" if name == "chatbot_preferences" else "instruction")


def evaluated(run, folder, *flags):
    assert evaluate([str(run), "--output", str(folder), *flags]) == 0
    return json.loads((folder / "evaluation.json").read_text())["measures"]


def test_glue_is_evaluated_by_its_measures_beside_the_probe(finished_run, tmp_path):
    made = finished_run(
        dataset="glue(path='examples/glue', task=cola)", model="tiny", clients=4, rounds=1, local_work="steps(2)",
        tokens=32, dtype="fp32", peft="lora(layers=1)",
    )  # fmt: skip
    table = evaluated(made, tmp_path / "out")
    assert list(table) == ["base, linear probe", "global"]
    for measures in table.values():
        assert {"accuracy", "balanced_accuracy", "matthews", "f1"} <= set(measures)
        assert -1 <= measures["matthews"] <= 1


def test_choices_of_medqas_rows_are_compared_by_likelihood(finished_run, chat_model, tmp_path):
    text = write_medqa(tmp_path / "US", "", [record(i, question="Which?") for i in range(12)])
    made = finished_run(
        dataset=text, model=chat_model, clients=2, rounds=1, local_work="steps(2)", tokens=64, dtype="fp32",
        peft="lora(layers=1)",
    )  # fmt: skip
    table = evaluated(made, tmp_path / "out")
    assert list(table) == ["base", "global"]
    assert all({"accuracy", "accuracy by length"} <= set(measures) for measures in table.values())
    answered = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [one["right"] for one in answered] == [[f" {letter}"] for letter in "ABCD" * 3]
    assert {said for one in answered for said in one["said"].values()} <= {" A", " B", " C", " D"}

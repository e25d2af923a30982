"""Whole runs on files in the layouts of LEAF and FedLLM-Bench."""

from __future__ import annotations

import json

import pytest

from tests import benchmark_files

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

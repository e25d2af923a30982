"""Runs on pairs of texts: a user's files, training, answers, the exported adapter in plain peft, what is refused."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from fedpeft.commands.check import main as check
from fedpeft.commands.export import main as export
from fedpeft.commands.predict import main as predict
from fedpeft.data.rows import load_dataset
from fedpeft.data.text_to_text import parse_pair
from fedpeft.evaluate.__main__ import main as evaluate
from fedpeft.models.base_model import resolve_model
from fedpeft.reporting.records import Records
from fedpeft.simulate import main
from tests.unit.simulation.test_seq2seq_run import lines, simulation


def trained(folder, **given):
    folder.mkdir(exist_ok=True)
    made = simulation(folder, **given)
    try:
        return made.train(made.server(Records(folder))).adapter
    finally:
        made.close()


def pairs(path: Path, names=("input", "target"), count: int = 40) -> Path:
    rows = load_dataset(f"tiny_seq2seq(owners=1, rows={count})").train
    return lines(path, *(dict(zip(names, parse_pair(row), strict=True)) for row in rows.inputs))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny_seq2seq", "tiny_seq2seq(kind=bart)"])
def test_both_executors_train_the_same(model, tmp_path):
    one, other = (
        trained(tmp_path / e, model=model, grid=f"cohort(executor={e})", learning_rate=1e-3)
        for e in ("batched", "sequential")
    )
    assert any(tensor.any() for name, tensor in one.items() if "lora_B" in name)
    assert all(torch.allclose(one[name], other[name], rtol=1e-6, atol=1e-8) for name in one)


def said_by(command, *words: str) -> str:
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert command([str(word) for word in words]) == 0, told.getvalue()
    return told.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "peft"), [("t5", "lora(rank=4, layers=0)"), ("bart", "lora(targets=('q_proj', 'v_proj'))")]
)
def test_a_user_s_walk(kind, peft, tmp_path):
    """From a file to an adapter that plain transformers and peft answer with as fedpeft does."""
    from peft import PeftModel

    data, run, model = pairs(tmp_path / "pairs.jsonl"), tmp_path / "run", f"tiny_seq2seq(kind={kind})"
    looked = said_by(check, data, "--model", model, "--picture", tmp_path / "p.svg", "--clients", "2",
                     "--partition", "iid")  # fmt: skip
    assert "seq2seq" in looked
    assert f"longest {6 + (kind == 'bart')}" in looked
    assert "taken as pairs of texts" in looked
    told = said_by(main, "--dataset", f"file:{data}", "--model", model, "--peft", peft, "--clients", "2",
                   "--cohort", "all", "--rounds", "2", "--tokens", "5", "--partition", "iid", "--dtype", "fp32",
                   "--workers", "1",
                   "--measure", "evaluate(new_tokens=6, metrics='exact_match')", "--output", run)  # fmt: skip
    assert "examples are longer than 5 tokens and truncated" in told
    assert "test perplexity" in told
    assert ", perplexity " in told
    assert json.loads((run / "summary.json").read_text())["task"] == "seq2seq"
    source = parse_pair(load_dataset(f"file:{data}").test.inputs[0])[0]
    answer = said_by(predict, run, source, "--new-tokens", "6").strip()
    judged = said_by(evaluate, run, "--metrics", "exact_match, f1", "--new-tokens", "6")
    assert "exact_match" in judged
    answered = [json.loads(line) for line in (run / "evaluation" / "answers.jsonl").read_text().splitlines()]
    assert answered[0]["said"]["global"] == answer
    table = json.loads((run / "evaluation" / "evaluation.json").read_text())["measures"]
    assert list(table) == ["input, copied", "base", "global"]
    assert table["input, copied"] == {"exact_match": 0, "f1": 0}  # the two languages share no word

    exported = said_by(export, run, "--output", tmp_path / "out")
    assert "AutoModelForSeq2SeqLM" in exported
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"
    base = AutoModelForSeq2SeqLM.from_pretrained(resolve_model(model))
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(model))
    plain = PeftModel.from_pretrained(base, str(tmp_path / "out" / "adapter")).eval()
    merged_told = said_by(export, run, "--merge", "--output", tmp_path / "merged")
    assert f'AutoModelForSeq2SeqLM.from_pretrained("{tmp_path / "merged"}")' in merged_told
    merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
    for theirs in (plain, merged):
        made = theirs.generate(**tokenizer(source, return_tensors="pt"), max_new_tokens=6, do_sample=False)
        assert tokenizer.decode(made[0], skip_special_tokens=True).strip() == answer
    assert any(t.any() for n, t in load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors").items()
               if "lora_B" in n and "decoder" in n)  # fmt: skip
    assert "text2text-generation" in (tmp_path / "out" / "README.md").read_text()

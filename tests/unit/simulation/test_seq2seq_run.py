"""Runs on pairs of texts: a user's files, training, answers, the exported adapter in plain peft, what is refused."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from fedpeft.check import main as check
from fedpeft.config import RunConfig
from fedpeft.data.datasets.hf import HF
from fedpeft.data.rows import load_dataset
from fedpeft.data.text_to_text import sides
from fedpeft.errors import ConfigError, DataError, ModelError
from fedpeft.evaluate import main as evaluate
from fedpeft.export import main as export
from fedpeft.models.base_model import resolve_model
from fedpeft.predict import main as predict
from fedpeft.run.console import ConsoleObserver
from fedpeft.run.records import Records
from fedpeft.simulate import main
from fedpeft.simulation.simulation import Simulation
from tests.refusals import refuses

TINY = {"dataset": "tiny_seq2seq(owners=3, rows=20)", "tokens": 16, "clients": 3, "cohort": "all", "rounds": 2,
        "workers": 1, "dtype": "fp64", "local_work": "steps(2)", "peft": "lora(rank=2, layers=0)",
        "learning_rate": 3e-3, "partition": "natural"}  # fmt: skip


def simulation(folder, **given) -> Simulation:
    return Simulation(RunConfig(**{**TINY, **given}), folder, ConsoleObserver(Console(quiet=True)))


def trained(folder, **given):
    folder.mkdir(exist_ok=True)
    made = simulation(folder, **given)
    try:
        return made.train(made.server(Records(folder))).adapter
    finally:
        made.close()


def lines(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(path: Path, names=("input", "target"), count: int = 40) -> Path:
    rows = load_dataset(f"tiny_seq2seq(owners=1, rows={count})").train
    return lines(path, *(dict(zip(names, sides(row), strict=True)) for row in rows.inputs))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny_seq2seq", "tiny_seq2seq(kind=bart)"])
def test_both_executors_train_the_same(model, tmp_path):
    one, other = (
        trained(tmp_path / e, model=model, grid=f"cohort(executor={e})", learning_rate=1e-3)
        for e in ("batched", "sequential")
    )
    assert any(tensor.any() for name, tensor in one.items() if "lora_B" in name)
    assert all(torch.allclose(one[name], other[name], rtol=1e-6, atol=1e-8) for name in one)


@pytest.mark.parametrize(
    ("settings", "row", "note"),
    [
        (
            "",
            {"input": "a", "target": "b"},
            "taken as pairs of texts for an encoder with a decoder: the column 'input'",
        ),
        ("text=article, target=summary", {"article": "a", "summary": "b"}, ""),
        ("text=prompt, target=completion", {"prompt": "a", "completion": "b"}, ""),
        ("text='q + c', target=a", {"q": "x", "c": "y", "a": "b"}, ""),
        ("template=alpaca, target=output", {"instruction": "a", "input": "", "output": "b"}, ""),
    ],
)
def test_columns_that_are_pairs(settings, row, note, tmp_path):
    path = lines(tmp_path / "rows.jsonl", *[row] * 20)
    made = load_dataset(f"file(path={str(path)!r}{', ' + settings if settings else ''})")
    assert (made.task, made.label_names, made.default_model) == ("seq2seq", None, "")
    source, target = sides(made.train.inputs[0])
    assert target == "b"
    assert source == {"q": "q: x c: y", "instruction": source}.get(next(iter(row)), "a")
    assert source.startswith("Below is an instruction") or "instruction" not in row
    assert any(said.startswith(note) for said in made.notes) == bool(note)
    with refuses("FP1205", "--model"):
        simulation(tmp_path / "x", dataset=f"file(path={str(path)!r}{', ' + settings if settings else ''})", clients=2,
                   partition="iid")  # fmt: skip


def test_columns_of_the_hub_that_are_pairs():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"article": ["x", "y", "z"] * 4, "highlights": ["a", "b", "c"] * 4})
    made = HF(name="x", text="article", target="highlights", test=None).made_of({"train": rows})
    assert (made.task, made.default_model, made.label_names) == ("seq2seq", "", None)
    assert {sides(row) for row in made.train.inputs} == {("x", "a"), ("y", "b"), ("z", "c")}


@pytest.mark.parametrize(
    ("settings", "row", "error", "words"),
    [
        ("text=a, target=c", {"a": "x", "b": "y"}, DataError, "line 1 of .* has no column 'c'"),
        ("text=a, target=b", {"a": "x", "b": ""}, DataError, "20 rows have no answer in the column 'b'"),
        ("text=a, target=b", {"a": "x", "b": 3}, DataError, "the column 'b' must hold a text, got 3"),
        ("text=a, target=b", {"a": "\ud800", "b": "y"}, DataError, "half of a character"),
        ("text=a, target=b, messages=m", {"a": "x", "b": "y"}, ConfigError, "leave one of them out"),
        ("text=a, target=b, template=chat", {"a": "x", "b": "y"}, ConfigError, "leave one of them out"),
    ],
)
def test_rows_and_settings_that_are_wrong_are_one_sentence(settings, row, error, words, tmp_path):
    path = lines(tmp_path / "rows.jsonl", *[row] * 20)
    with pytest.raises(error, match=words) as caught:
        load_dataset(f"file(path={str(path)!r}, {settings})")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"model": "tiny_lm"}, ModelError, "no encoder with a decoder"),
        ({"peft": "prompt_tuning(length=2)"}, ModelError, "an encoder and a decoder; take --peft lora"),
        ({"drift": "label_shift"}, ConfigError, "label_shift"),
        ({"drift": "adversarial"}, ConfigError, "this is seq2seq of texts; leave it out of --drift"),
        ({"measure": "forgetting(dataset=tiny_lm)"}, ConfigError, "compares pairs of texts with pairs"),
        ({"measure": "calibration"}, ConfigError, "calibration"),
        ({"attack": "label_flip"}, ConfigError, "label_flip|classes"),
        ({"partition": "dirichlet"}, DataError, "dirichlet|classes|labels"),
    ],
)
def test_what_does_not_go_with_pairs_is_one_sentence(given, error, words, tmp_path):
    with pytest.raises(error, match=words) as caught:
        simulation(tmp_path / "x", **given)
    assert "\n" not in str(caught.value)


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
    assert "rows are longer than 5 tokens and cut there" in told
    assert "test perplexity" in told
    assert "  perplexity " in told
    assert json.loads((run / "summary.json").read_text())["task"] == "seq2seq"
    source = sides(load_dataset(f"file:{data}").test.inputs[0])[0]
    answer = said_by(predict, run, source, "--new-tokens", "6").strip()
    judged = said_by(evaluate, run, "--metrics", "exact_match, f1", "--new-tokens", "6")
    assert "exact_match" in judged
    answered = [json.loads(line) for line in (run / "evaluation" / "answers.jsonl").read_text().splitlines()]
    assert answered[0]["said"]["global"] == answer

    exported = said_by(export, run, "--output", tmp_path / "out")
    assert "AutoModelForSeq2SeqLM" in exported
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"
    base = AutoModelForSeq2SeqLM.from_pretrained(resolve_model(model))
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(model))
    plain = PeftModel.from_pretrained(base, str(tmp_path / "out" / "adapter")).eval()
    merged_told = said_by(export, run, "--merge", "--output", tmp_path / "merged")
    assert "AutoModelForSeq2SeqLM.from_pretrained(FOLDER)" in merged_told
    merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
    for theirs in (plain, merged):
        made = theirs.generate(**tokenizer(source, return_tensors="pt"), max_new_tokens=6, do_sample=False)
        assert tokenizer.decode(made[0], skip_special_tokens=True).strip() == answer
    assert any(t.any() for n, t in load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors").items()
               if "lora_B" in n and "decoder" in n)  # fmt: skip
    assert "text2text-generation" in (tmp_path / "out" / "README.md").read_text()

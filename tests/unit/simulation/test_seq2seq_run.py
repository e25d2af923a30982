"""Runs on pairs of texts: a user's files, training, answers, the exported adapter in plain peft, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from fedpeft.data.datasets.hf import HF
from fedpeft.data.rows import load_dataset
from fedpeft.data.text_to_text import parse_pair
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses

TINY = {"dataset": "tiny_seq2seq(owners=3, rows=20)", "tokens": 16, "clients": 3, "cohort": "all", "rounds": 2,
        "workers": 1, "dtype": "fp64", "local_work": "steps(2)", "peft": "lora(rank=2, layers=0)",
        "learning_rate": 3e-3, "partition": "natural"}  # fmt: skip


def simulation(folder, **given) -> Simulation:
    return Simulation(RunConfig(**{**TINY, **given}), folder, ConsoleObserver(Console(quiet=True)))


def lines(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


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
    source, target = parse_pair(made.train.inputs[0])
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
    made = HF(name="x", text="article", target="highlights", test=None).build_dataset({"train": rows})
    assert (made.task, made.default_model, made.label_names) == ("seq2seq", "", None)
    assert {parse_pair(row) for row in made.train.inputs} == {("x", "a"), ("y", "b"), ("z", "c")}


@pytest.mark.parametrize(
    ("settings", "row", "words"),
    [
        ("text=a, target=c", {"a": "x", "b": "y"}, ("FP3006", "line 1", "'c'")),
        ("text=a, target=b", {"a": "x", "b": ""}, ("FP3062", 20, "'b'")),
        ("text=a, target=b", {"a": "x", "b": 3}, ("FP3151", "'b'", 3)),
        ("text=a, target=b", {"a": "\ud800", "b": "y"}, ("FP3152", "'a'")),
        ("text=a, target=b, messages=m", {"a": "x", "b": "y"}, ("FP1105", "messages", "target")),
        ("text=a, target=b, template=chat", {"a": "x", "b": "y"}, ("FP1112", "template=chat", "target")),
    ],
)
def test_rows_and_settings_that_are_wrong_are_one_sentence(settings, row, words, tmp_path):
    path = lines(tmp_path / "rows.jsonl", *[row] * 20)
    with refuses(*words) as caught:
        load_dataset(f"file(path={str(path)!r}, {settings})")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "tiny_lm"}, ("FP4046", "llama")),
        ({"peft": "prompt_tuning(length=2)"}, ("FP4070", "T5ForConditionalGeneration", "--peft lora")),
        ({"drift": "label_shift"}, ("FP1341", "label_shift", "seq2seq")),
        ({"drift": "adversarial"}, ("FP1309", "adversarial", "seq2seq")),
        ({"measure": "forgetting(dataset=tiny_lm)"}, ("FP1410", "forgetting='tiny_lm'")),
        ({"attack": "label_flip"}, ("FP1412", "label_flip", "tiny_seq2seq")),
        ({"partition": "dirichlet"}, ("FP3088", "dirichlet")),
    ],
)
def test_what_does_not_go_with_pairs_is_one_sentence(given, words, tmp_path):
    with refuses(*words) as caught:
        simulation(tmp_path / "x", **given)
    assert "\n" not in str(caught.value)

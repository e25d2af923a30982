"""fedpeft from Python: finished runs as objects, parts and rows as objects, and a process that is left as it was."""

from __future__ import annotations

import os
import sys
import threading
import warnings

import pytest
import torch

import fedpeft
from fedpeft.parts import plugins
from tests.refusals import refuses
from tests.unit.test_api import ROWS, TINY, Part


def state_of_this_process():
    from transformers.utils import logging

    return (
        torch.get_num_threads(), dict(os.environ), list(warnings.filters), logging.get_verbosity(),
        logging.is_progress_bar_enabled(), plugins.list_named(), dict(plugins._names), threading.active_count(),
        os.getcwd(),
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Return a run of two rounds, with a strategy object, that a callback ended after one."""
    run_simulation = fedpeft.run_simulation  # with it come libraries that warn of this and that when imported
    before = state_of_this_process()
    heard = []

    def on_round(result):
        heard.append(result.round)
        return True

    folder = tmp_path_factory.mktemp("api") / "run"
    run = run_simulation(**TINY, strategy=Part(share=0.25), output=folder, on_round=on_round)
    assert heard == [1]
    assert state_of_this_process() == before
    return run


def test_a_run_is_an_object(ended):
    assert ended.accuracy == ended.summary["accuracy"]
    assert ended.summary["rounds"] == 1
    assert list(ended.history["round"]) == [1]
    assert sorted(ended.clients["client"].unique()) == [0, 1, 2, 3]
    assert (ended.adapter / "adapter_model.safetensors").is_file()
    assert repr(ended) == f"Run({str(ended.folder)!r}, accuracy={ended.accuracy:.4g})", "one line in a notebook"
    assert len(ended.plot().axes) == 2
    assert ended.plot()._repr_png_().startswith(b"\x89PNG"), "what a notebook shows"
    assert not ended.model().training
    assert ended.parts == {"strategies": {"Part": Part}}, "its model may need them"


def test_a_run_predicts_and_evaluates(ended, capsys):
    from fedpeft.commands.predict import main as predict

    text = ROWS[0]["text"]
    answers = ended.predict([text, ROWS[1]["text"]])
    assert len(answers) == 2
    assert predict([str(ended.folder), text]) == 0
    assert capsys.readouterr().out.strip() == answers[0] == ended.predict(text)[0]
    with refuses("FP1516", "new_tokens=0"):
        ended.predict(text, new_tokens=0)
    table = ended.evaluate(rows=20)
    assert "global" in set(table["model"])
    assert table["accuracy"].between(0, 1).all()


KINDS = {
    "classification": ({}, "class"),
    "language model": ({"dataset": "tiny_lm", "head": "auto"}, "text"),
    "personal models": ({"strategy": "fedsa_lora"}, "class"),
}
"""Settings beside `TINY`, and what the model answers with."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_each_kind_has_history_adapter_answers_measures_and_a_plot(kind, tmp_path):
    settings, answers = KINDS[kind]
    run = fedpeft.run_simulation(**{**TINY, **settings, "rounds": 1}, output=tmp_path / "run")
    assert list(run.history["round"])[-1] == 1
    assert (run.adapter / "adapter_model.safetensors").is_file()
    [answer] = run.predict("one two three", new_tokens=3)
    assert isinstance(answer, str)
    table = run.evaluate(rows=10, own="0" if kind == "personal models" else "")
    assert {"base", "global"} <= set(table["model"]) if answers == "text" else "global" in set(table["model"])
    assert "client 0" in set(table["model"]) or kind != "personal models"
    figure = run.plot()
    assert len(figure.axes) == 2
    assert all(axis.lines for axis in figure.axes)
    if kind == "personal models":
        labels = [line.get_label() for line in figure.axes[0].lines]
        assert labels[:2] == [f"{what}, mean over clients, own held-out rows" for what in ("federated", "result")]


def test_a_run_is_opened_with_the_objects_that_it_was_given(tmp_path):
    datasets = pytest.importorskip("datasets")
    import pandas

    frame = pandas.DataFrame(ROWS).assign(site=[f"s{i % 4}" for i in range(len(ROWS))])
    given = {name: value for name, value in TINY.items() if name not in ("dataset", "clients", "progress")}
    own = {"dataset": datasets.Dataset.from_pandas(frame).class_encode_column("label"), "strategy": Part(share=0.4)}
    settings = {**given, "partition": "natural", "clients": 0, "model": "tiny", "rounds": 1, "progress": False}
    run = fedpeft.run_simulation(**settings, **own, output=tmp_path / "run")
    assert run.summary["clients"] == 4
    plugins._state.named.clear()
    with refuses("FP1231", "in_memory", "fedpeft.open_run"):
        fedpeft.open_run(run.folder).evaluate()
    again = fedpeft.open_run(run.folder, dataset=frame, strategy=Part(share=0.4))
    assert again.evaluate().equals(run.evaluate())
    with refuses("FP5254", run.folder, "strategy=Part(share=0.4)", "Part(share=0.25)"):
        fedpeft.open_run(run.folder, strategy=Part(share=0.25))
    with refuses("FP5254", run.folder, "dataset"):
        fedpeft.open_run(run.folder, dataset=frame.head(60))
    with refuses("FP1225", "open_run", "data", "did you mean 'dataset"):
        fedpeft.open_run(run.folder, data=frame)


def test_without_pandas_there_are_records(ended, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert [line["round"] for line in fedpeft.open_run(ended.folder).history] == [1]


def test_an_object_is_recorded_and_asked_for_again(ended):
    assert ended.config.strategy == "Part(share=0.25)"
    again = fedpeft.open_run(ended.folder)
    assert again.config == ended.config
    with refuses("FP1231", "Part", "given it as an object in Python"):
        fedpeft.run_simulation(resume=ended.folder, progress=False)
    plugins._state.named.clear()
    longer = fedpeft.run_simulation(resume=ended.folder, strategy=Part(share=0.25), progress=False)
    assert longer.summary["rounds"] == 2


def test_a_share_of_the_mean_is_what_was_computed(ended, tmp_path):
    whole = fedpeft.run_simulation(**TINY, output=tmp_path / "run", on_round=lambda _: True)
    norm, full = (float(run.history["update_norm"].iloc[0]) for run in (ended, whole))
    assert norm == pytest.approx(0.25 * full, rel=1e-3)


def test_rows_and_a_model_in_memory(tmp_path):
    from transformers import AutoModel, AutoTokenizer

    from fedpeft.models.base_model import resolve_model

    tiny = resolve_model("tiny")
    model, tokenizer = AutoModel.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    shards = [([row["text"] for row in ROWS[k::3]], [row["label"] for row in ROWS[k::3]]) for k in range(3)]
    given = {name: value for name, value in TINY.items() if name not in ("dataset", "clients")}
    run = fedpeft.run_simulation(**given, dataset=shards, model=model, tokenizer=tokenizer, output=tmp_path / "run")
    assert run.summary["clients"] == 3
    assert run.model() is not None
    with refuses("FP1037"):
        fedpeft.run_simulation(**given, dataset=shards, model=model, output=tmp_path / "other")
    assert not (tmp_path / "other").exists()

"""Runs whose labels are numbers, or several a row: executors, resuming, what is refused, and the walk of a user."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from fedpeft.commands.check import main as check
from fedpeft.commands.export import main as export
from fedpeft.commands.predict import main as predict
from fedpeft.commands.report import main as report
from fedpeft.data.rows import Rows, load_dataset
from fedpeft.evaluate.__main__ import main as evaluate
from fedpeft.models.target_measures import measure_labels, measure_numbers
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.reporting.records import Records
from fedpeft.simulate import main
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.targets import LABELS, prices, tagged

TINY = {"tokens": 16, "clients": 3, "cohort": "all", "rounds": 2, "workers": 1, "seed": 3, "dtype": "fp64",
        "local_work": "steps(2)", "peft": "lora(rank=2, layers=1)", "learning_rate": 3e-3, "model": "tiny",
        "partition": "iid", "head": "ridge"}  # fmt: skip
KINDS = ("numbers", "labels")


def data_of(kind, folder, count=120) -> str:
    if kind == "labels":
        return f"file:{tagged(folder / 'rows.jsonl', count)}"
    return f"file(path={str(prices(folder / 'rows.csv', count))!r}, label=price)"


def simulation(folder, **given) -> Simulation:
    return Simulation(RunConfig(**{**TINY, **given}), folder, ConsoleObserver(Console(quiet=True)))


def trained(folder, **given):
    folder.mkdir(exist_ok=True)
    made = simulation(folder, **given)
    try:
        return made.train(made.server(Records(folder))).adapter
    finally:
        made.close()


@pytest.mark.parametrize("kind", [KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.slow)])
def test_executors_agree(kind, tmp_path):
    data = data_of(kind, tmp_path)
    one, other = (trained(tmp_path / e, dataset=data, grid=f"cohort(executor={e})") for e in ("batched", "sequential"))
    assert one["head.weight"].any()
    assert one["head.weight"].shape[0] == (1 if kind == "numbers" else len(LABELS))
    for name in one:
        assert torch.allclose(one[name], other[name], rtol=1e-7, atol=1e-9), name


class StopError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_resumes_to_the_identical_state(kind, tmp_path, monkeypatch):
    data = data_of(kind, tmp_path)
    whole = trained(tmp_path / "whole", dataset=data)

    def stop(_self, result):
        if result.round == 1:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(ConsoleObserver, "round_done", stop)
        with pytest.raises(StopError):
            trained(tmp_path / "cut", dataset=data)
    again = trained(tmp_path / "cut", dataset=data)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_known_moments_go_with_privacy(tmp_path):
    path = prices(tmp_path / "rows.csv")
    data = f"file(path={str(path)!r}, label=price, mean=500, deviation=200)"
    state = trained(tmp_path / "run", dataset=data, head="zero", privacy="dp_sgd(epsilon=8)", dtype="fp32", rounds=1)
    assert torch.isfinite(state["head.weight"]).all()


@pytest.fixture
def trusted(tmp_path, monkeypatch):
    """Where `trust_remote_code` leaves the code that it runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@dataclass
class Walk:
    """What a user has after `check` and `simulate`, and what the saved model says of the test rows."""

    kind: str
    data: str
    run: Path
    said: str
    numbers: bool
    summary: dict
    finished: FinishedRun
    test: Rows
    encoded: dict
    outputs: torch.Tensor

    @property
    def values(self) -> np.ndarray:
        """In the unit of the labels, or probabilities, (rows, outputs)."""
        return self.finished.task.values(self.outputs).numpy()


@pytest.fixture(scope="module", params=KINDS)
def walk(request, tmp_path_factory):
    from transformers import AutoTokenizer

    folder, kind = tmp_path_factory.mktemp(request.param), request.param
    data, run, heard = data_of(kind, folder, 400), folder / "run", io.StringIO()
    words = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "dtype": "fp32"}.items()]
    with contextlib.redirect_stdout(heard):
        checked = [data, "--model", "tiny", "--clients", "3", "--picture", str(folder / "check.svg")]
        assert check(checked) in (0, 1)
        assert main([*words, "--dataset", data, "--output", str(run)]) == 0
    finished = FinishedRun.read(run)
    model, test = finished.model(finished.base()), load_dataset(data).test
    tokenizer = AutoTokenizer.from_pretrained(finished.model_directory)
    told = tokenizer(list(test.inputs), truncation=True, max_length=16, padding=True, return_tensors="pt")
    encoded = {name: told[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        outputs = model(encoded).double()
    summary = json.loads((run / "summary.json").read_text())
    return Walk(kind, data, run, heard.getvalue(), kind == "numbers", summary, finished, test, encoded, outputs)


@pytest.mark.slow
def test_check_and_simulate_say_what_rows_without_classes_come_to(walk):
    assert ("price: mean" if walk.numbers else "wet") in walk.said
    assert ("root mean squared" if walk.numbers else "F1, micro / macro") in walk.said
    summary = walk.summary
    assert summary["metric"] == ("skill" if walk.numbers else "label_accuracy")
    assert summary["accuracy"] > (0.5 if walk.numbers else 0.7)
    assert summary["baseline_accuracy"] > (0.5 if walk.numbers else 0.7)
    assert summary["perplexity"] is summary["temperature"] is None
    assert (walk.run / "rounds.svg").is_file()
    truth = walk.test.labels
    of_numbers_or_labels = (
        measure_numbers(walk.values[:, 0], truth)
        if walk.numbers
        else measure_labels(walk.outputs.numpy(), truth > 0, LABELS)
    )
    for name, value in of_numbers_or_labels.items():
        told = summary["targets"][name]
        assert told == (value if isinstance(value, dict) else pytest.approx(value, rel=1e-3)), name
    assert summary["targets"]["probe"].keys() == {*of_numbers_or_labels, "rows"}
    assert summary["targets"]["probe"]["rows"] == len(truth)


@pytest.mark.slow
def test_predict_evaluate_and_report_speak_of_them(walk, tmp_path, capfd):
    run, text = str(walk.run), str(walk.test.inputs[0])
    capfd.readouterr()
    assert predict([run, text]) == 0
    answer = capfd.readouterr().out.strip()
    if walk.numbers:
        assert float(answer) == pytest.approx(walk.values[0, 0], rel=1e-4)
    else:
        shown = [f"{'+' if p >= 0.5 else '-'}{n} ({p:.3f})" for n, p in zip(LABELS, walk.values[0], strict=True)]
        assert answer.split() == " ".join(shown).split()
    for wrong in ([run, text, "--abstain", "0.5"], [run, run, text, "--ensemble"]):
        assert predict(wrong) == 2
    assert evaluate([run, "--output", str(tmp_path / "evaluation")]) == 0
    told = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["measures"]["global"]
    assert told[walk.summary["metric"]] == pytest.approx(walk.summary["accuracy"], rel=1e-3)
    assert ("rmse" if walk.numbers else "macro_f1") in told
    assert report([run, "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert ("test skill (%)" if walk.numbers else "test label accuracy (%)") in page
    assert "test accuracy (%)" not in page


@pytest.mark.slow
def test_an_exported_head_speaks_in_the_labels_unit(walk, tmp_path):
    out = tmp_path / "out"
    assert export([str(walk.run), "--output", str(out)]) == 0
    head = load_file(out / "adapter" / "head.safetensors")
    model = walk.finished.model(walk.finished.base())
    with torch.no_grad():
        features = model.features(walk.encoded)
    plain = (features @ head["head.weight"].T + head["head.bias"]).double().numpy()
    assert np.allclose(plain, walk.values if walk.numbers else walk.outputs.numpy(), rtol=1e-3, atol=1e-3)
    card = (out / "README.md").read_text()
    assert ("root mean squared error" if walk.numbers else "micro F1") in card
    kept = load_file(walk.run / "adapter" / "head.safetensors")
    assert torch.equal(kept["head.weight"], head["head.weight"]) != walk.numbers, "the run's own stays as it was"


@pytest.mark.slow
def test_transformers_loads_and_runs_what_was_exported(walk, tmp_path, trusted):
    from transformers import AutoModelForSequenceClassification, pipeline

    out = tmp_path / "merged"
    assert export([str(walk.run), "--merge", "--output", str(out)]) == 0
    whole = AutoModelForSequenceClassification.from_pretrained(out, trust_remote_code=True)
    assert whole.config.problem_type == ("regression" if walk.numbers else "multi_label_classification")
    labels = torch.tensor(walk.test.labels).float()
    with torch.no_grad():
        loaded = whole(**walk.encoded, labels=labels)
    expected = walk.values if walk.numbers else walk.outputs.numpy()
    assert np.allclose(loaded.logits.numpy(), expected, rtol=1e-3, atol=1e-2 if walk.numbers else 1e-4)
    slow = ((walk.values[:, 0] - walk.test.labels) ** 2).mean() if walk.numbers else walk.summary["loss"]
    assert float(loaded.loss) == pytest.approx(slow, rel=1e-2)
    classify = pipeline("text-classification", str(out), trust_remote_code=True)
    [first] = classify([str(walk.test.inputs[0])], top_k=None, truncation=True)
    scores = [one["score"] for one in (first if isinstance(first, list) else [first])]
    assert scores == [pytest.approx(value, rel=1e-3, abs=1e-3) for value in sorted(walk.values[0], reverse=True)]


def test_a_run_of_uneven_classes_and_repeated_rows_says_so(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    rows = [(f"w{i % 40} w{i % 7}", "ok" if i % 10 else "bad") for i in range(280)]
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in [*rows, *rows]))
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "rounds": 1}.items()]
    assert main([f"--dataset=file:{path}", *flags, f"--output={tmp_path / 'run'}"]) == 0
    said = capsys.readouterr().out
    assert "test examples also occur in the training examples" in said
    assert "always the most frequent class, ok" in said
    told = json.loads((tmp_path / "run" / "summary.json").read_text())["targets"]
    assert told["most_frequent"] == {"name": "ok", "share": pytest.approx(0.9, abs=0.01)}
    assert told["rows"] == 112
    assert set(told["probe"]["by_class"]) == {"ok", "bad"}

"""Runs whose labels are numbers, or several a row: executors, resuming, what is refused, and the walk of a user."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from fedpeft.check import main as check
from fedpeft.config import RunConfig
from fedpeft.data.rows import load_dataset
from fedpeft.errors import ConfigError, DataError, PrivacyError
from fedpeft.evaluate import main as evaluate
from fedpeft.export import main as export
from fedpeft.models.target_measures import of_labels, of_numbers
from fedpeft.predict import main as predict
from fedpeft.report import main as report
from fedpeft.run.console import ConsoleObserver
from fedpeft.run.finished import FinishedRun
from fedpeft.run.records import Records
from fedpeft.simulate import main
from fedpeft.simulation.simulation import Simulation
from tests.targets import LABELS, prices, tagged

TINY = {"tokens": 16, "clients": 3, "cohort": "all", "rounds": 2, "workers": 1, "seed": 3, "dtype": "fp64",
        "local_work": "steps(2)", "peft": "lora(rank=2, layers=1)", "learning_rate": 3e-3, "model": "tiny",
        "partition": "iid", "head": "ridge"}  # fmt: skip
KINDS = ("numbers", "labels")


def data_of(kind, folder) -> str:
    if kind == "labels":
        return f"file:{tagged(folder / 'rows.jsonl')}"
    return f"file(path={str(prices(folder / 'rows.csv'))!r}, label=price)"


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


@pytest.mark.parametrize(
    ("kind", "given", "error", "words"),
    [
        ("numbers", {"privacy": "dp_sgd(epsilon=8)", "head": "zero"}, PrivacyError, "say what is known of them before"),
        ("numbers", {"privacy": "user_dp(epsilon=8)", "head": "private_ridge"}, ConfigError, "starts from classes"),
        ("numbers", {"head": "centroids"}, ConfigError, "these rows have numbers; take --head ridge or zero"),
        ("labels", {"head": "centroids"}, ConfigError, "several labels each; take --head ridge or zero"),
        ("labels", {"partition": "dirichlet"}, DataError, "several labels each; take iid"),
        ("numbers", {"drift": "label_shift"}, ConfigError, "label_shift .*numbers have none"),
        ("labels", {"drift": "label_shift"}, ConfigError, "label_shift .*several labels have none"),
        ("numbers", {"measure": "calibration"}, ConfigError, "calibration is that of classes, and regression has none"),
        ("labels", {"measure": "calibration"}, ConfigError, "calibration is that of classes"),
        ("labels", {"measure": "robustness"}, ConfigError, "robustness is that of classes"),
        ("numbers", {"measure": "laplace"}, ConfigError, "laplace"),
        ("numbers", {"measure": "forgetting(dataset=tiny)"}, ConfigError, "forgetting asks for classes"),
        ("numbers", {"measure": "evaluate(questions='x')"}, ConfigError, "this predicts numbers"),
        ("labels", {"attack": "label_flip"}, ConfigError, "changes classes, and rows.jsonl has none"),
        ("numbers", {"strategy": "prototypes"}, ConfigError, "makes the head of classes"),
        ("numbers", {"peft": "prompt_ensemble"}, ConfigError, "compares what it says of classes"),
    ],
)
def test_what_has_no_meaning_without_classes_is_one_sentence(kind, given, error, words, tmp_path):
    with pytest.raises(error, match=words) as caught:
        simulation(tmp_path / "x", dataset=data_of(kind, tmp_path), **given)
    assert "\n" not in str(caught.value)


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_from_a_file_to_a_model_of_transformers(kind, tmp_path, monkeypatch, trusted, capfd):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    monkeypatch.chdir(tmp_path)
    data = data_of(kind, tmp_path)
    assert check([data, "--model", "tiny", "--clients", "3"]) in (0, 1)
    said = capfd.readouterr().out
    assert ("price: mean" if kind == "numbers" else "wet") in said
    run = tmp_path / "run"
    words = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "dtype": "fp32"}.items()]
    assert main([*words, "--dataset", data, "--output", str(run)]) == 0
    said = capfd.readouterr().out
    assert ("root mean squared" if kind == "numbers" else "F1, micro / macro") in said
    summary = json.loads((run / "summary.json").read_text())
    assert summary["metric"] == ("skill" if kind == "numbers" else "label_accuracy")
    assert summary["accuracy"] > (0.2 if kind == "numbers" else 0.6)
    assert summary["perplexity"] is None
    assert summary["targets"]["probe"]
    assert (run / "rounds.svg").is_file()

    finished = FinishedRun.read(run)
    model, test = finished.model(finished.base()), load_dataset(finished.config.dataset).test
    tokenizer = AutoTokenizer.from_pretrained(finished.model_directory)
    with torch.no_grad():
        encoded = tokenizer(list(test.inputs), truncation=True, max_length=16, padding=True, return_tensors="pt")
        outputs = model({n: encoded[n] for n in ("input_ids", "attention_mask")}).double()
    values = finished.task.values(outputs).numpy()
    again = (
        of_numbers(values[:, 0], test.labels)
        if kind == "numbers"
        else of_labels(outputs.numpy(), test.labels > 0, LABELS)
    )
    for name, value in again.items():
        assert summary["targets"][name] == (value if isinstance(value, dict) else pytest.approx(value, rel=1e-3)), name

    assert predict([str(run), str(test.inputs[0])]) == 0
    answer = capfd.readouterr().out.strip()
    if kind == "numbers":
        assert float(answer) == pytest.approx(values[0, 0], rel=1e-4)
    else:
        shown = [f"{'+' if p >= 0.5 else '-'}{n} ({p:.3f})" for n, p in zip(LABELS, values[0], strict=True)]
        assert answer.split() == " ".join(shown).split()
    assert predict([str(run), "x", "--abstain", "0.5"]) == 2
    assert evaluate([str(run)]) == 0
    told = json.loads((run / "evaluation" / "evaluation.json").read_text())["measures"]["global"]
    assert told[summary["metric"]] == pytest.approx(summary["accuracy"], rel=1e-3)
    assert ("rmse" if kind == "numbers" else "macro_f1") in told
    assert report([str(run), "--output", str(tmp_path / "report")]) == 0

    assert export([str(run), "--output", str(tmp_path / "out")]) == 0
    head = load_file(tmp_path / "out" / "adapter" / "head.safetensors")
    with torch.no_grad():
        features = model.features({n: encoded[n] for n in ("input_ids", "attention_mask")})
    plain = (features @ head["head.weight"].T + head["head.bias"]).double().numpy()
    assert np.allclose(plain, values if kind == "numbers" else outputs.numpy(), rtol=1e-3, atol=1e-3)
    assert ("micro F1" if kind == "labels" else "root mean squared error") in (tmp_path / "out/README.md").read_text()
    assert export([str(run), "--merge", "--output", str(tmp_path / "merged")]) == 0
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", trust_remote_code=True)
    problem = "regression" if kind == "numbers" else "multi_label_classification"
    assert whole.config.problem_type == problem
    labels = torch.tensor(test.labels).float()
    with torch.no_grad():
        loaded = whole(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], labels=labels)
    expected = values if kind == "numbers" else outputs.numpy()
    assert np.allclose(loaded.logits.numpy(), expected, rtol=1e-3, atol=1e-2 if kind == "numbers" else 1e-4)
    slow = ((values[:, 0] - test.labels) ** 2).mean() if kind == "numbers" else summary["loss"]
    assert float(loaded.loss) == pytest.approx(slow, rel=1e-2)
    classify = pipeline("text-classification", str(tmp_path / "merged"), trust_remote_code=True)
    [first] = classify([str(test.inputs[0])], top_k=None, truncation=True)
    scores = {one["label"]: one["score"] for one in (first if isinstance(first, list) else [first])}
    assert list(scores.values()) == [pytest.approx(v, rel=1e-3, abs=1e-3) for v in sorted(values[0], reverse=True)]

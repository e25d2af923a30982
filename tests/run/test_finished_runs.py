"""After training: export with a card, merging, predictions over one base; forgetting and calibration."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, AutoModelForCausalLM

from fedpeft.export import main as export
from fedpeft.models.base_model import resolve_model
from fedpeft.models.calibration import calibrate, temperature
from fedpeft.peft.method import PEFT_METHODS
from fedpeft.predict import main as predict
from fedpeft.run.finished import FinishedRun, sample_batch, twin
from fedpeft.simulate import main as simulate

pytestmark = pytest.mark.slow

TINY = ["--dataset=tiny", "--tokens=16", "--clients=4", "--cohort=2", "--rounds=1", "--workers=1", "--local-steps=4",
        "--dtype=fp32", "--learning-rate=0.01"]  # fmt: skip
METHODS = {"lora": [], "bitfit": [], "prefix": [], "ia3": ["--forgetting=tiny"], "lora + bitfit": []}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for method, more in METHODS.items():
        assert simulate([*TINY, "--peft", method, *more, "--output", str(folder / method)]) == 0
    return folder


def said(capfd) -> str:
    return "".join(capfd.readouterr())


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_is_exported_with_a_card(method, runs, tmp_path, capfd):
    assert export([str(runs / method), "--output", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    summary = json.loads((runs / method / "summary.json").read_text())
    assert f"{summary['accuracy']:.4f}" in card
    assert "1 rounds of 2 clients" in card
    assert not re.search(r"\d\.\d{7}", card), "numbers for people"
    assert "| privacy | none" in card
    assert (tmp_path / "out" / "adapter" / "head.safetensors").is_file()
    assert export([str(runs / method), "--output", str(tmp_path / "out")]) == 2
    assert "is not empty" in said(capfd)


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_model_computes_the_same_or_is_refused(method, runs, tmp_path, capfd):
    code = export([str(runs / method), "--merge", "--output", str(tmp_path / "out")])
    heard = said(capfd)
    if not PEFT_METHODS.build(method).merges:
        assert code == 2
        assert "can't be merged" in heard
        return
    assert code == 0
    assert "outputs differ by at most" in heard
    run = FinishedRun.read(runs / method)
    batch = sample_batch(run.model_directory)
    with torch.no_grad():
        expected = run.model(run.base()).base(**batch).last_hidden_state
        merged = AutoModel.from_pretrained(tmp_path / "out" / "model")(**batch).last_hidden_state
        plain = run.base()(**batch).last_hidden_state
    assert torch.allclose(merged, expected, atol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-4)


def test_several_runs_answer_over_one_base(runs, capfd, monkeypatch):
    loaded = []
    original = FinishedRun.base
    monkeypatch.setattr(FinishedRun, "base", lambda self: loaded.append(self.folder) or original(self))
    text = "some words of it"
    alone = []
    for method in METHODS:
        assert predict([str(runs / method), text]) == 0
        alone.append(said(capfd).strip())
    loaded.clear()
    assert predict([*(str(runs / method) for method in METHODS), text]) == 0
    together = said(capfd).strip().splitlines()
    assert [line.partition(": ")[2] for line in together] == alone
    assert len(loaded) == 1


def test_a_twin_shares_weights_and_nothing_else():
    base = AutoModel.from_pretrained(resolve_model("tiny"))
    names = [name for name, _ in base.named_modules()]
    copy = twin(base)
    copy.encoder.layer[0] = torch.nn.Identity()
    assert [name for name, _ in base.named_modules()] == names
    assert {p.data_ptr() for p in twin(base).parameters()} == {p.data_ptr() for p in base.parameters()}


def test_mistakes_are_one_sentence(runs, tmp_path, capfd):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.toml").write_text((runs / "lora" / "config.toml").read_text())
    for command, arguments, words in (
        (predict, ["text only"], "needs a run's folder and a text"),
        (predict, [str(tmp_path / "nowhere"), "text"], "holds no run"),
        (predict, [str(unfinished), "text"], "continue it with"),
        (export, [str(tmp_path / "nowhere")], "holds no run"),
        (export, [str(unfinished)], "continue it with"),
    ):
        assert command(arguments) == 2
        heard = said(capfd)
        assert words in heard
        assert "Traceback" not in heard


@pytest.mark.parametrize(
    ("method", "file", "content"),
    [
        ("bitfit", "adapter/adapter.safetensors", ""),
        ("bitfit", "adapter/method.json", None),
        ("lora", "adapter/adapter_model.safetensors", "no tensors"),
        ("lora", "adapter/head.safetensors", None),
        ("lora", "adapter/labels.json", "{"),
        ("lora", "summary.json", "{}"),
    ],
)
def test_damaged_files_are_one_sentence(method, file, content, runs, tmp_path, capfd):
    folder = tmp_path / "run"
    shutil.copytree(runs / method, folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    assert predict([str(folder), "some words"]) == 2
    heard = said(capfd)
    assert "error:" in heard
    assert "Traceback" not in heard


def test_a_run_that_nobody_could_score_is_exported_all_the_same(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs / "lora", folder)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"accuracy": None, "baseline_accuracy": None}))
    assert export([str(folder), "--output", str(tmp_path / "out")]) == 0
    assert "| accuracy | not measured" in (tmp_path / "out" / "README.md").read_text()


def test_a_language_model_s_card_says_how_it_is_loaded(tmp_path, capfd):
    words = [word for word in TINY if not word.startswith("--dataset")]
    assert simulate([*words, "--dataset=tiny_lm", "--partition=iid", "--output", str(tmp_path / "run")]) == 0
    assert export([str(tmp_path / "run"), "--output", str(tmp_path / "adapter")]) == 0
    assert "AutoModelForCausalLM.from_pretrained(BASE)" in (tmp_path / "adapter" / "README.md").read_text()
    run = FinishedRun.read(tmp_path / "run")
    base = AutoModelForCausalLM.from_pretrained(run.model_directory)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter" / "adapter"))
    batch = sample_batch(run.model_directory)
    with torch.no_grad():
        assert torch.allclose(loaded(**batch).logits, run.model(run.base()).base(**batch).logits, atol=1e-5)
    assert predict([str(tmp_path / "run"), "a word", "--new-tokens", "0"]) == 2
    assert "at least 1" in said(capfd)
    assert predict([str(tmp_path / "run"), "word " * 5000]) == 2
    assert "the model reads" in said(capfd)


def test_long_texts_are_cut_to_what_the_model_reads(tmp_path, capfd):
    words = [word for word in TINY if not word.startswith("--tokens")]
    assert simulate([*words, "--tokens=6000", "--output", str(tmp_path / "run")]) == 0
    said(capfd)
    assert predict([str(tmp_path / "run"), "word " * 5000]) == 0


def test_a_client_s_own_adapter_is_not_merged(runs, tmp_path, capfd):
    assert export([str(runs / "lora"), "--client", "0", "--merge", "--output", str(tmp_path / "out")]) == 2
    assert "leave --merge or --client out" in said(capfd)


def test_a_second_task_is_scored_before_and_after(runs):
    scored = json.loads((runs / "ia3" / "summary.json").read_text())["forgetting"]
    assert scored["measure"] == "probe accuracy"
    assert 0 < scored["before"] <= 1
    assert scored["lost"] == pytest.approx(scored["before"] - scored["after"])
    assert json.loads((runs / "lora" / "summary.json").read_text())["forgetting"] is None


def test_a_second_task_of_another_kind_is_refused(tmp_path, capfd):
    assert simulate([*TINY, "--forgetting", "tiny_lm", "--output", str(tmp_path / "run")]) == 2
    assert "must be of the run's kind, text classification" in said(capfd)


def test_the_summary_has_the_calibration_error_before_and_after_scaling(runs):
    summary = json.loads((runs / "lora" / "summary.json").read_text())
    scores = np.load(runs / "lora" / "predictions.npz")
    for key, confidence in (("calibration_error", "confidence"), ("calibration_error_scaled", "scaled")):
        assert summary[key] == pytest.approx(calibrate(scores[confidence], scores["correct"]).error)
    assert summary["temperature"] > 0


def test_the_temperature_undoes_overconfidence():
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 5))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([random.choice(5, p=p) for p in chances])
    assert temperature(3 * logits, labels) == pytest.approx(3, rel=0.1)


def test_a_language_model_goes_on(tmp_path: Path, capfd):
    words = ["--dataset=tiny_lm", "--clients=3", "--cohort=2", "--rounds=1", "--workers=1", "--local-steps=1"]
    words += ["--peft=prefix(layers=0)", "--dtype=fp32", "--partition=iid", "--forgetting=tiny_lm(seed=5)"]
    assert simulate([*words, "--output", str(tmp_path / "run")]) == 0
    scored = json.loads((tmp_path / "run" / "summary.json").read_text())["forgetting"]
    assert scored["measure"] == "nats per token"
    capfd.readouterr()
    assert predict([str(tmp_path / "run"), "some words", "--new-tokens", "3"]) == 0
    assert said(capfd).strip()

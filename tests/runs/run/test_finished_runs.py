"""After training: export with a card, merging, predictions over one base; forgetting and calibration."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers import AutoModelForSequenceClassification as TextClassifier

from fedpeft.commands.export import main as export
from fedpeft.commands.predict import main as predict
from fedpeft.measurements.forgetting import Forgetting
from fedpeft.models.base_model import resolve_model
from fedpeft.models.calibration import calibrate, fit_temperature
from fedpeft.models.readout import ALL_BLOCKS
from fedpeft.parts.families import PEFT_METHODS
from fedpeft.reporting.final_score import Scorer
from fedpeft.reporting.finished_run import FinishedRun, clone_modules, sample_batch
from fedpeft.simulate import main as simulate
from fedpeft.wiring.measurements import parse_measure
from tests.finished import as_flags
from tests.refusals import has_error

pytestmark = pytest.mark.slow

SETTINGS = {"dataset": "tiny", "tokens": 16, "clients": 4, "cohort": 2, "rounds": 1, "local_work": "steps(4)",
            "dtype": "fp32", "learning_rate": 0.01, "measure": "validation(keep=last)",
            "safeguard": "none"}  # fmt: skip
TINY = as_flags(workers=1, **SETTINGS)
FORGETTING = {"measure": "validation(keep=last) + forgetting(dataset=tiny)"}
METHODS = {"lora": {}, "bitfit": {}, "prefix": {}, "ia3": FORGETTING, "lora + bitfit": {}, "prompt_tuning": {},
           "head2toe": {}, "lora + head2toe": {}}  # fmt: skip
WHOLE = ("lora", "full")
TEXTS = ("some words of it", "kalep kamir puvos", "kalep " * 40)


@pytest.fixture(scope="module")
def runs(finished_run):
    """Return a finished run for each method."""
    return {method: finished_run(**SETTINGS | {"peft": method} | more) for method, more in METHODS.items()}


@pytest.fixture(scope="module")
def whole(finished_run, tmp_path_factory):
    """By kind and method, a finished run and its export as a model of its own."""
    folder, found = tmp_path_factory.mktemp("whole"), {}
    for kind, dataset in (("classification", "tiny"), ("language", "tiny_lm")):
        for method in WHOLE:
            run, out = finished_run(**SETTINGS | {"dataset": dataset, "peft": method}), folder / f"{kind}-{method}"
            assert export([str(run), "--merge", "--output", str(out)]) == 0
            found[kind, method] = FinishedRun.read(run), out
    return found


@pytest.fixture
def trusted(tmp_path, monkeypatch):
    """Modules that come with a model are kept in the test's own folder."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def said(capfd) -> str:
    return "".join(capfd.readouterr())


@pytest.mark.parametrize("method", WHOLE)
def test_a_pipeline_classifies_as_predict_does(method, whole, trusted, capfd):
    run, out = whole["classification", method]
    classify = pipeline("text-classification", str(out), trust_remote_code=True)
    capfd.readouterr()
    for text in TEXTS:
        assert predict([str(run.folder), text]) == 0
        [best] = classify(text, truncation=True)
        assert f"{best['label']} ({best['score']:.3f})" == said(capfd).strip()
        every = classify(text, truncation=True, top_k=None)
        assert {chance["label"] for chance in every} == set(run.labels)
        assert sum(chance["score"] for chance in every) == pytest.approx(1)


@pytest.mark.parametrize("method", WHOLE)
def test_a_classifier_s_folder_is_not_taken_for_another(method, whole, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE", 0)  # nobody is there to be asked
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        pipeline("text-classification", str(whole["classification", method][1]))


@pytest.mark.parametrize("method", WHOLE)
def test_a_language_model_s_folder_is_taken_as_it_is(method, whole, capfd):
    run, out = whole["language", method]
    ours = run.model(run.base()).base
    ids = AutoTokenizer.from_pretrained(out)("some words of it", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.allclose(AutoModelForCausalLM.from_pretrained(out)(ids).logits, ours(ids).logits, atol=1e-5)
    assert (out / "generation_config.json").is_file()
    capfd.readouterr()
    assert predict([str(run.folder), "kalep kamir", "--new-tokens=5"]) == 0
    write = pipeline("text-generation", str(out))
    [made] = write("kalep kamir", max_new_tokens=5, do_sample=False, return_full_text=False)
    assert made["generated_text"].strip() == said(capfd).strip()


def test_a_language_model_s_folder_keeps_the_chat_template(whole, tmp_path, monkeypatch):
    run, _ = whole["language", "lora"]
    model = tmp_path / "chatty"
    shutil.copytree(run.model_directory, model)
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    monkeypatch.setattr(FinishedRun, "model_directory", model)
    assert export([str(run.folder), "--merge", "--output", str(tmp_path / "out")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "kalep"}, {"role": "assistant", "content": "kamir"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "kalep kamir "


def test_the_card_has_what_a_hub_reads(whole):
    data = ModelCard.load(whole["language", "lora"][1] / "README.md").data
    assert (data.base_model, data.library_name, data.pipeline_tag) == ("tiny_lm", "transformers", "text-generation")
    assert {"federated-learning", "lora"} <= set(data.tags)
    assert data.license is None


def test_nothing_exported_tells_a_path_of_this_machine(whole, runs, tmp_path):
    base = tmp_path / "mine"
    shutil.copytree(FinishedRun.read(runs["lora"]).model_directory, base)
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "kalep,a\nkamir,b\n" * 40)
    words = [word for word in TINY if not word.startswith("--dataset")]
    run = tmp_path / "run"
    assert simulate([*words, f"--dataset=file:{rows}", "--model", str(base), "--output", str(run)]) == 0
    assert export([str(run), "--output", str(tmp_path / "adapter")]) == 0
    assert export([str(run), "--merge", "--output", str(tmp_path / "merged")]) == 0
    exported = [tmp_path / "adapter", tmp_path / "merged", run / "adapter", *(out for _, out in whole.values())]
    files = [file for folder in exported for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 20
    for path in (tmp_path, base.parent, FinishedRun.read(runs["lora"]).model_directory.parent):
        assert not [file for file in files if str(path).encode() in file.read_bytes()]
    assert "| base model | mine |" in (tmp_path / "merged" / "README.md").read_text()
    assert "file:rows.csv" in (tmp_path / "merged" / "README.md").read_text()
    assert not (run / "adapter" / "README.md").exists()


@pytest.mark.parametrize("method", ["lora", "ia3", "prompt_tuning"])
def test_peft_s_auto_class_does_not_load_an_adapter_with_another_head(method, runs):
    file = runs[method] / "adapter" / "adapter_config.json"
    assert json.loads(file.read_text())["base_model_name_or_path"] == "tiny"
    with pytest.raises(ValueError, match=r"auto class|Expected target PEFT class"):
        AutoPeftModelForSequenceClassification.from_pretrained(file.parent)


def test_peft_s_auto_class_loads_a_language_model_s_adapter(whole, tmp_path, monkeypatch):
    run, _ = whole["language", "lora"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_lm").symlink_to(run.model_directory)  # as the hub would have it
    loaded = AutoPeftModelForCausalLM.from_pretrained(run.folder / "adapter")
    batch = sample_batch(run.model_directory)
    with torch.no_grad():
        assert torch.allclose(loaded(**batch).logits, run.model(run.base()).base(**batch).logits, atol=1e-5)


def test_a_run_is_used_from_another_folder_than_it_was_made_in(runs, tmp_path, capfd, monkeypatch):
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir(), away.mkdir()
    shutil.copytree(FinishedRun.read(runs["lora"]).model_directory, home / "mine")
    (home / "rows.csv").write_text("text,label\n" + "kalep,a\nkamir,b\n" * 40)
    (home / "test.csv").write_text("text,label\nkalep,a\nkamir,b\n")
    words = [word for word in TINY if not word.startswith("--dataset")]
    monkeypatch.chdir(home)
    data = "file(path='rows.csv', test='test.csv')"
    assert (
        simulate(
            [
                *words,
                "--dataset",
                data,
                "--model=./mine",
                "--measure=forgetting(dataset='file:rows.csv')",
                "--output=run",
            ]
        )
        == 0
    )
    monkeypatch.chdir(away)
    config = FinishedRun.read(home / "run").config
    assert config.model == str(home / "mine")
    assert config.dataset == f"file(path='{home}/rows.csv', test='{home}/test.csv')"
    assert parse_measure(config.measure).get(Forgetting).dataset == f"file:{home}/rows.csv"
    assert predict([str(home / "run"), "kalep"]) == 0
    assert export([str(home / "run"), "--merge", "--output=out"]) == 0
    assert simulate(["--resume", str(home / "run")]) == 0


@pytest.mark.parametrize("method", ["lora", "head2toe", "lora + head2toe"])
def test_an_image_classifier_is_exported_whole(method, tmp_path, trusted):
    from transformers import AutoModelForImageClassification, ViTConfig, ViTModel

    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    ViTModel(ViTConfig(image_size=64, patch_size=8, **small)).save_pretrained(tmp_path / "vit")
    words = [*(word for word in TINY if not word.startswith("--dataset")), "--peft", method]
    folder = tmp_path / "run"
    assert simulate([*words, "--dataset=digits", "--model", str(tmp_path / "vit"), "--output", str(folder)]) == 0
    assert export([str(folder), "--merge", "--output", str(tmp_path / "out")]) == 0
    run = FinishedRun.read(folder)
    batch = sample_batch(run.model_directory)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out", trust_remote_code=True)
    with torch.no_grad():
        assert torch.allclose(model(**batch).logits, run.model(run.base())(batch) / run.temperature, atol=1e-5)
    assert model.config.id2label[3] == run.labels[3]


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_is_exported_with_a_card(method, runs, tmp_path, capfd):
    assert export([str(runs[method]), "--output", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    summary = json.loads((runs[method] / "summary.json").read_text())
    assert f"{summary['accuracy']:.4f}" in card
    assert "1 round of 2 clients" in card
    assert not re.search(r"\d\.\d{7}", card), "numbers for people"
    assert "| privacy | none" in card
    assert (tmp_path / "out" / "adapter" / "head.safetensors").is_file()
    assert export([str(runs[method]), "--output", str(tmp_path / "out")]) == 2
    assert has_error(said(capfd), "FP5133", "--output")


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_model_computes_the_same_or_is_refused(method, runs, tmp_path, trusted, capfd):
    code = export([str(runs[method]), "--merge", "--output", str(tmp_path / "out")])
    heard = said(capfd)
    if not PEFT_METHODS.build(method).merges:
        assert code == 2
        assert has_error(heard, "FP1170", "--merge")
        return
    assert code == 0
    assert "The merged outputs differ from the adapter's by at most" in heard
    assert "forward pass on 4 examples" in heard
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("of all blocks" in card) is (PEFT_METHODS.build(method).reads == ALL_BLOCKS)
    run = FinishedRun.read(runs[method])
    batch = sample_batch(run.model_directory)
    exported = TextClassifier.from_pretrained(tmp_path / "out", trust_remote_code=True)
    with torch.no_grad():
        expected = run.model(run.base())(batch) / run.temperature
        assert torch.allclose(exported(**batch).logits, expected, atol=1e-5)
        exported.base = run.base()
        if method != "head2toe":
            assert not torch.allclose(exported(**batch).logits, expected, atol=1e-4), "the adapter makes no difference"


def test_several_runs_answer_over_one_base(runs, capfd, monkeypatch):
    loaded = []
    original = FinishedRun.base
    monkeypatch.setattr(FinishedRun, "base", lambda self: loaded.append(self.folder) or original(self))
    text = "some words of it"
    alone = []
    for method in METHODS:
        assert predict([str(runs[method]), text]) == 0
        alone.append(said(capfd).strip())
    loaded.clear()
    assert predict([*(str(runs[method]) for method in METHODS), text]) == 0
    together = said(capfd).strip().splitlines()
    assert [line.partition(": ")[2] for line in together] == alone
    assert len(loaded) == 1


def test_a_twin_shares_weights_and_nothing_else():
    base = AutoModel.from_pretrained(resolve_model("tiny"))
    names = [name for name, _ in base.named_modules()]
    copy = clone_modules(base)
    copy.encoder.layer[0] = torch.nn.Identity()
    assert [name for name, _ in base.named_modules()] == names
    assert {p.data_ptr() for p in clone_modules(base).parameters()} == {p.data_ptr() for p in base.parameters()}


def test_mistakes_are_one_sentence(runs, tmp_path, capfd):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.toml").write_text((runs["lora"] / "config.toml").read_text())
    for command, arguments, words in (
        (predict, ["text only"], ("FP1281",)),
        (predict, [str(tmp_path / "nowhere"), "text"], ("FP5135", "nowhere")),
        (predict, [str(runs["lora"]), "one text", "another"], ("FP1528", "'one text'", "--data FILE")),
        (predict, [str(unfinished), "text"], ("FP5182", "unfinished")),
        (export, [str(tmp_path / "nowhere")], ("FP5135", "nowhere")),
        (export, [str(unfinished)], ("FP5182", "unfinished")),
    ):
        assert command(arguments) == 2
        heard = said(capfd)
        assert has_error(heard, *words)
        assert "Traceback" not in heard


def test_a_finished_run_that_is_resumed_keeps_its_scores(runs, tmp_path, monkeypatch, capfd):
    folder = tmp_path / "run"
    shutil.copytree(runs["lora"], folder)
    before = (folder / "summary.json").read_bytes()
    with monkeypatch.context() as here:
        here.setattr(Scorer, "score", None)
        assert simulate(["--resume", str(folder)]) == 0
    assert (folder / "summary.json").read_bytes() == before
    assert "accuracy" in said(capfd)
    (folder / "predictions.npz").unlink()
    assert simulate(["--resume", str(folder)]) == 0
    assert (folder / "predictions.npz").exists()
    assert json.loads((folder / "summary.json").read_text())["resumed"]


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
    shutil.copytree(runs[method], folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    assert predict([str(folder), "some words"]) == 2
    heard = said(capfd)
    assert "error:" in heard
    assert "Traceback" not in heard


def test_a_run_that_nobody_could_score_is_exported_all_the_same(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs["lora"], folder)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"accuracy": None, "baseline_accuracy": None}))
    assert export([str(folder), "--output", str(tmp_path / "out")]) == 0
    assert "| accuracy | not measured" in (tmp_path / "out" / "README.md").read_text()


def test_a_language_model_s_card_says_how_it_is_loaded(tmp_path, capfd):
    words = [word for word in TINY if not word.startswith("--dataset")]
    assert simulate([*words, "--dataset=tiny_lm", "--partition=iid", "--output", str(tmp_path / "run")]) == 0
    assert export([str(tmp_path / "run"), "--output", str(tmp_path / "adapter")]) == 0
    assert (
        "AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)"
        in (tmp_path / "adapter" / "README.md").read_text()
    )
    run = FinishedRun.read(tmp_path / "run")
    base = AutoModelForCausalLM.from_pretrained(run.model_directory)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter" / "adapter"))
    batch = sample_batch(run.model_directory)
    with torch.no_grad():
        assert torch.allclose(loaded(**batch).logits, run.model(run.base()).base(**batch).logits, atol=1e-5)
    assert predict([str(tmp_path / "run"), "a word", "--new-tokens", "0"]) == 2
    assert has_error(said(capfd), "FP1282", "--new-tokens", 0)
    assert predict([str(tmp_path / "run"), "word " * 5000]) == 2
    assert has_error(said(capfd), "FP1274", 5001, 64, 40, "--new-tokens")


def test_long_texts_are_cut_to_what_the_model_reads(tmp_path, capfd):
    words = [word for word in TINY if not word.startswith("--tokens")]
    assert simulate([*words, "--tokens=6000", "--output", str(tmp_path / "run")]) == 0
    said(capfd)
    assert predict([str(tmp_path / "run"), "word " * 5000]) == 0


def test_a_client_s_own_adapter_is_not_merged(runs, tmp_path, capfd):
    assert export([str(runs["lora"]), "--client", "0", "--merge", "--output", str(tmp_path / "out")]) == 2
    assert has_error(said(capfd), "FP1175", "--merge", "--client")


def test_a_second_task_is_scored_before_and_after(runs):
    scored = json.loads((runs["ia3"] / "summary.json").read_text())["forgetting"]
    assert scored["measure"] == "probe accuracy"
    assert 0 < scored["before"] <= 1
    assert scored["lost"] == pytest.approx(scored["before"] - scored["after"])
    assert json.loads((runs["lora"] / "summary.json").read_text())["forgetting"] is None


def test_a_second_task_of_another_kind_is_refused(tmp_path, capfd):
    assert simulate([*TINY, "--measure", "forgetting(dataset=tiny_lm)", "--output", str(tmp_path / "run")]) == 2
    assert has_error(said(capfd), "FP1411", "text classification")


def test_the_summary_has_the_calibration_error_before_and_after_scaling(runs):
    summary = json.loads((runs["lora"] / "summary.json").read_text())
    scores = np.load(runs["lora"] / "predictions.npz")
    for key, confidence in (("calibration_error", "confidence"), ("calibration_error_scaled", "scaled")):
        assert summary[key] == pytest.approx(calibrate(scores[confidence], scores["correct"]).error)
    assert summary["temperature"] > 0


def test_the_temperature_undoes_overconfidence():
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 5))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([random.choice(5, p=p) for p in chances])
    assert fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.1)


def test_a_language_model_goes_on(tmp_path: Path, capfd):
    words = ["--dataset=tiny_lm", "--clients=3", "--cohort=2", "--rounds=1", "--workers=1", "--local-work=steps(1)"]
    words += [
        "--peft=prefix(layers=0)",
        "--dtype=fp32",
        "--partition=iid",
        "--measure=forgetting(dataset='tiny_lm(seed=5)')",
    ]
    assert simulate([*words, "--output", str(tmp_path / "run")]) == 0
    scored = json.loads((tmp_path / "run" / "summary.json").read_text())["forgetting"]
    assert scored["measure"] == "nats per token"
    capfd.readouterr()
    assert predict([str(tmp_path / "run"), "some words", "--new-tokens", "3"]) == 0
    assert said(capfd).strip()

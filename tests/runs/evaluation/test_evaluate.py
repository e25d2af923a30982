"""Evaluation of finished runs: answers in batches, choices by likelihood, metrics, clients side by side, mistakes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from fedpeft.commands.predict import main as predict
from fedpeft.data.made_words import WORDS
from fedpeft.evaluate.__main__ import main
from fedpeft.models.answers.likelihood import compute_log_likelihoods
from fedpeft.models.answers.questions import QuestionForm, read_questions
from fedpeft.parts.families import METRICS, TASKS
from fedpeft.reporting.finished_run import FinishedRun
from tests.refusals import has_error, refuses
from tests.unit.evaluation.test_code import isolated


def conversation(i: int) -> list[dict[str, str]]:
    """Return a question whose answer is its last word."""
    asked = WORDS[10 + i % 20 : 12 + i % 20 + i % 4]
    return [{"role": "user", "content": " ".join(asked)}, {"role": "assistant", "content": asked[-1]}]


SETTINGS = {"clients": 3, "cohort": 3, "rounds": 2, "partition": "iid", "dtype": "fp32", "local_work": "steps(3)",
            "peft": "lora", "learning_rate": 0.02}  # fmt: skip
LANGUAGE = {"dataset": "tiny_lm(owners=3, rows=12)", "model": "tiny_lm"}


@pytest.fixture(scope="module")
def run(chat_model, finished_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"messages": conversation(i)}) + "\n" for i in range(60)), encoding="utf-8"
    )
    given = {"dataset": f"file:{folder / 'rows.jsonl'}", "model": chat_model, "strategy": "fedsa_lora"}
    return finished_run(**SETTINGS, **given)


def measures(folder):
    return json.loads((folder / "evaluation.json").read_text())["measures"]


def lines(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_likelihoods_are_sums_of_log_probabilities(run, tmp_path):
    path = tmp_path / "exam.jsonl"
    choices = [WORDS[3], f"{WORDS[4]} {WORDS[5]}", f"{WORDS[6]} {WORDS[7]} {WORDS[8]}"]
    path.write_text(json.dumps({"question": WORDS[20], "choices": choices, "answer": "B"}) + "\n")
    finished = FinishedRun.read(run)
    [question] = read_questions(str(path), QuestionForm(True))
    model, tokenizer = finished.model(finished.base()), AutoTokenizer.from_pretrained(finished.model_directory)
    [found] = compute_log_likelihoods(model, TASKS.build("causal_lm"), tokenizer, [question], "")
    for choice, likelihood in zip(choices, found, strict=True):
        messages = [{"role": "user", "content": WORDS[20]}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        said = tokenizer(choice, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*prompt, *said]])
        logs = model.base(input_ids=ids).logits[0].log_softmax(-1)
        total = sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(said))
        assert likelihood == pytest.approx(total, abs=1e-4)
    assert question.right == (choices[1],)


def test_a_metric_without_its_library_is_one_sentence(monkeypatch, run, tmp_path, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with refuses("FP2008", "rouge_l", "rouge_score", "evaluate"):
        METRICS.build("rouge_l").check()
    assert main([str(run), "--metrics", "exact_match, rouge_l", "--output", str(tmp_path / "out")]) == 2
    assert has_error(capsys.readouterr().err, "FP2008", "evaluate")
    assert not (tmp_path / "out").exists()


def test_base_global_own_and_alone_stand_side_by_side(run, tmp_path, capsys):
    out = tmp_path / "out"
    words = [str(run), "--own", "0, 2", "--alone", "all", "--new-tokens=3", "--output", str(out)]
    assert main(words) == 0
    table = measures(out)
    alone = [f"client {k} alone" for k in range(3)]
    names = ["base", "global", "client 0", "client 2", *alone, "clients, mean", "clients alone, mean"]
    assert list(table) == names
    assert set(table["global"]) == {"loss", "perplexity", "exact_match", "f1"}
    assert all(table[name]["loss"] < table["base"]["loss"] for name in names[2:])
    assert len({table[name]["loss"] for name in names[2:]}) == len(names) - 2
    mean = sum(table[name]["loss"] for name in alone) / 3
    assert table["clients alone, mean"]["loss"] == pytest.approx(mean)
    said = lines(out)
    assert len(said) == 12
    assert all(set(line["said"]) == set(names[:7]) for line in said)
    right = sum(line["said"]["global"] == line["right"][0] for line in said) / 12
    assert table["global"]["exact_match"] == pytest.approx(right)
    shown = capsys.readouterr().out
    assert "client 2 alone" in shown
    assert said[2]["right"][0] in shown


def test_a_client_alone_is_trained_once_and_on_its_own_rows(run, tmp_path):
    kept = run / "evaluation" / "alone-1" / "adapter" / "adapter_model.safetensors"
    assert main([str(run), "--alone=1", "--rows=3", "--output", str(tmp_path / "one")]) == 0
    before, bits = kept.stat().st_mtime_ns, kept.read_bytes()
    assert main([str(run), "--alone=1", "--rows=3", "--output", str(tmp_path / "two")]) == 0
    assert kept.stat().st_mtime_ns == before
    assert measures(tmp_path / "one") == measures(tmp_path / "two")
    shutil.rmtree(run / "evaluation" / "alone-1")
    assert main([str(run), "--alone=1", "--rows=3", "--output", str(tmp_path / "three")]) == 0
    assert kept.read_bytes() == bits


def test_questions_of_a_file(run, tmp_path):
    free, exam = tmp_path / "free.jsonl", tmp_path / "exam.jsonl"
    rows = [{"question": WORDS[i], "answer": [WORDS[i], WORDS[i + 1]]} for i in range(20, 25)]
    free.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"question": WORDS[i], "choices": [WORDS[i], WORDS[i + 50]], "answer": WORDS[i]} for i in range(10, 26)]
    exam.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(run), "--questions", str(free), "--metrics=exact_match", "--output", str(tmp_path / "a")]) == 0
    assert [line["right"] for line in lines(tmp_path / "a")] == [[WORDS[i], WORDS[i + 1]] for i in range(20, 25)]
    assert main([str(run), "--questions", str(exam), "--output", str(tmp_path / "b")]) == 0
    table, said = measures(tmp_path / "b"), lines(tmp_path / "b")
    right = sum(line["said"]["global"] == line["right"][0] for line in said) / len(said)
    assert table["global"]["accuracy"] == pytest.approx(right)
    assert table["global"]["accuracy by length"] == table["global"]["accuracy"]  # all words are equally long


@isolated
def test_code_of_answers_is_tested_if_the_user_allows_it(run, tmp_path, capsys):
    question = {"question": WORDS[20], "answer": "def one():\n    return 1", "tests": "assert one() == 1"}
    (tmp_path / "code.jsonl").write_text(json.dumps(question))
    asked = [str(run), "--questions", str(tmp_path / "code.jsonl"), "--metrics", "pass_at_1", "--output", str(tmp_path)]
    assert main(asked) == 2
    assert has_error(capsys.readouterr().err, "FP1682", "--run-code")
    assert main([*asked, "--run-code"]) == 0
    assert {name: row["pass_at_1"] for name, row in measures(tmp_path).items()} == {"base": 0.0, "global": 0.0}
    assert lines(tmp_path)[0]["right"] == [question["answer"]]


def test_a_classifier_has_loss_accuracy_and_its_probe(finished_run, tmp_path):
    given = {"dataset": "tiny", "model": "tiny", "clients": 4, "peft": "lora(layers=1)"}
    folder = shutil.copytree(finished_run(**SETTINGS | given), tmp_path / "run")
    assert main([str(folder), "--alone=0"]) == 0
    table, summary = measures(folder / "evaluation"), json.loads((folder / "summary.json").read_text())
    assert list(table) == ["base, linear probe", "global", "client 0 alone"]
    assert table["global"]["accuracy"] == pytest.approx(summary["accuracy"])
    assert table["base, linear probe"]["accuracy"] == summary["baseline_accuracy"]
    assert table["base, linear probe"].keys() | {"loss"} == table["global"].keys()
    assert not (folder / "evaluation" / "answers.jsonl").exists()


def test_a_plain_language_model_has_loss_and_perplexity(finished_run, tmp_path):
    folder = shutil.copytree(finished_run(**SETTINGS, **LANGUAGE), tmp_path / "run")
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"question": WORDS[0], "choices": [WORDS[1], WORDS[2]], "answer": 1}) + "\n")
    assert main([str(folder)]) == 0
    table, summary = measures(folder / "evaluation"), json.loads((folder / "summary.json").read_text())
    assert set(table["base"]) == {"loss", "perplexity"}
    assert table["global"]["loss"] == pytest.approx(summary["loss"], rel=1e-6)
    assert table["global"]["loss"] <= table["base"]["loss"]  # the start itself, where that is the best state
    assert table["base"]["perplexity"] == pytest.approx(np.exp(table["base"]["loss"]))
    assert main([str(folder), "--questions", str(exam)]) == 0
    assert set(measures(folder / "evaluation")["base"]) == {"loss", "perplexity", "accuracy", "accuracy by length"}


def test_what_is_too_long_is_counted_and_said(run, tmp_path, capsys):
    path = tmp_path / "free.jsonl"
    rows = [{"question": " ".join(WORDS[:n]), "answer": "x"} for n in (3, 58, 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [str(run), "--questions", str(path), "--new-tokens=8", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    assert "1 of 3 questions are left out: with 8 new tokens they are longer than the 64" in " ".join(
        capsys.readouterr().out.split()
    )
    assert len(lines(tmp_path / "out")) == 2
    path.write_text(json.dumps(rows[1]) + "\n")
    assert main(words) == 2
    assert has_error(capsys.readouterr().err, "FP3002")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--questions", "nowhere.jsonl"], ("FP3036", "nowhere.jsonl")),
        (["--questions", "rows.csv"], ("FP1034", "rows.csv", ".jsonl")),
        (["--metrics", "meteor"], ("FP1231", "'meteor'")),
        (["--own", "7"], ("FP1160", "'7'")),
        (["--new-tokens", "0"], ("FP1161", "--new-tokens", 1, 0)),
        (["--flowertune", "nlp"], ("FP1162",)),
        (["--output", __file__], ("FP5180", __file__)),
    ],
)
def test_a_mistake_is_one_sentence(run, capsys, more, said):
    assert main([str(run), "--rows=2", *more]) == 2
    assert has_error(capsys.readouterr().err, *said)


def test_clients_without_adapters_of_their_own_are_told(chat_model, finished_run, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": conversation(i)}) + "\n" for i in range(30)), encoding="utf-8")
    folder = finished_run(**SETTINGS | {"dataset": f"file:{path}", "model": chat_model, "rounds": 1})
    assert main([str(folder), "--own=0"]) == 2
    assert has_error(capsys.readouterr().err, "FP1418")
    assert not (folder / "evaluation").exists()


def test_predict_says_what_the_model_says_with_a_prompt_in_front(finished_run, capsys):
    folder = finished_run(**SETTINGS | LANGUAGE | {"peft": "prompt_tuning(length=3)", "learning_rate": 0.3})
    finished = FinishedRun.read(folder)
    model, tokenizer = finished.model(finished.base()), AutoTokenizer.from_pretrained(finished.model_directory)
    text = " ".join(WORDS[5:8])
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    start = ids.shape[1]
    for _ in range(10):
        with torch.no_grad():
            logits = model.base(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        if ids[0, -1] == 3:
            break
    capsys.readouterr()
    assert predict([str(folder), text, "--new-tokens=10"]) == 0
    assert capsys.readouterr().out.strip() == tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()

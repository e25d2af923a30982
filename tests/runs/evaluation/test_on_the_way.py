"""`--measure evaluate`: the global model is asked every few rounds, as the finished run is by `evaluate`."""

from __future__ import annotations

import json
import pickle
from types import SimpleNamespace

import pytest
import torch

from fedpeft.data.made_words import WORDS
from fedpeft.data.rows import Rows
from fedpeft.data.tokens import load_tokenizer
from fedpeft.evaluate.__main__ import main as evaluate
from fedpeft.models.answers.exam import Exam, select_fitting
from fedpeft.models.answers.questions import QuestionForm, parse_question, read_questions
from fedpeft.models.base_model import resolve_model
from fedpeft.parts.families import TASKS
from fedpeft.reporting.run_folder import resolve_paths
from fedpeft.simulate import main
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.dataset_info import DatasetInfo
from fedpeft.wiring.measurement import NewRun
from fedpeft.wiring.measurements import parse_measure
from fedpeft.wiring.run_spec import parse_run
from fedpeft.wiring.setup import Setup
from tests.refusals import refuses

RUN = [
    "--dataset", "tiny_lm(owners=4, rows=6)", "--partition", "natural", "--clients", "0", "--cohort", "2", "--dtype",
    "fp32", "--workers", "1",
]  # fmt: skip


@pytest.fixture
def choices(tmp_path):
    file = tmp_path / "exam.jsonl"
    lines = [{"question": f"the {n}", "choices": ["one", "two three", "four"], "answer": n % 3} for n in range(5)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.mark.fast
def test_measures_are_those_of_the_answers():
    asked = tuple(parse_question(json.dumps({"prompt": f"{n}?", "answer": str(n)})) for n in range(4))
    free = Exam(asked, "exact_match", 4)
    assert free.compute_measures([("0",), ("1",), ("no",), ("no",)]) == {"exact_match": 0.5}
    assert pickle.loads(pickle.dumps(free)) == free  # it goes to workers


@pytest.mark.fast
def test_choices_are_measured_as_they_are_and_by_length(choices):
    exam = Exam(tuple(read_questions(str(choices), QuestionForm(asks=False))), "exact_match", 4, " ")
    assert exam.has_choices
    assert exam.sequences == 15
    right = [question.right[0] for question in exam.questions]
    said = [(text, "one") for text in right]
    assert exam.compute_measures(said) == {"accuracy": 1.0, "accuracy by length": right.count("one") / 5}
    folder = resolve_model("tiny_lm")
    task = TASKS.build("causal_lm")
    model = task.model(task.base(folder, torch.float32), None).eval()
    answers = exam.answer(model, load_tokenizer(folder))
    assert all(set(pair) <= set(question.choices) for pair, question in zip(answers, exam.questions, strict=True))


@pytest.mark.fast
def test_questions_that_are_too_long_are_counted():
    tokenizer = load_tokenizer(resolve_model("tiny_lm"))
    asked = [parse_question(json.dumps({"prompt": " ".join(["w"] * n), "answer": "x"})) for n in (2, 60)]
    kept, notes = select_fitting(asked, tokenizer, 4, 30)
    assert kept == asked[:1]
    assert "1 of 2 questions are left out" in notes[0]
    with refuses("FP3002"):
        select_fitting(asked[1:], tokenizer, 4, 30)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("task", "measure", "settings", "words"),
    [
        ("classification", "evaluate", {}, ("FP1355", "is a classifier")),
        ("causal_lm", "evaluate", {}, ("FP1357", "causal_lm")),
        ("causal_lm", "evaluate(questions='x.jsonl', metrics=nonsense)", {}, ("FP1231", "nonsense")),
        ("causal_lm", "evaluate(questions='x.jsonl')", {"strategy": "fedsa_lora"}, ("FP1356",)),
    ],
)
def test_who_can_t_be_asked_is_told_so(task, measure, settings, words):
    names = ("a", "b") if task == "classification" else None
    model = "tiny" if task == "classification" else "tiny_lm"
    config = RunConfig(measure=measure, clients=4, dtype="fp32", **settings)
    with refuses(*words):
        Setup.create(parse_run(config), DatasetInfo("text", task, names, model, clients=4))


@pytest.mark.fast
def test_without_rows_a_server_needs_a_file():
    with refuses("FP1358"):
        parse_measure("evaluate").begin(
            NewRun(SimpleNamespace(is_protected=False), lambda: Rows([], None, None), None, print)
        )


@pytest.mark.fast
def test_a_run_keeps_the_file_of_questions_by_its_whole_path(choices, monkeypatch):
    monkeypatch.chdir(choices.parent)
    config = RunConfig(measure="validation(every=2) + evaluate(questions='exam.jsonl')")
    assert str(choices) in resolve_paths(config).measure
    assert resolve_paths(RunConfig()).measure == RunConfig().measure


@pytest.mark.slow
def test_a_run_of_conversations_is_asked_its_validation_rows_as_the_finished_one_is(chat_model, tmp_path, monkeypatch):
    monkeypatch.setattr("fedpeft.reporting.workers.BATCH", 3)
    rows = [{"messages": [{"role": "user", "content": f"say {w}"}, {"role": "assistant", "content": w}]} for w in WORDS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:60]))
    words = ["--dataset", f"file:{tmp_path / 'rows.jsonl'}", "--model", str(chat_model), "--clients=3", "--cohort=3"]
    words += ["--partition=iid", "--dtype=fp32", "--rounds=2", "--workers=1", "--peft=lora(layers=1)"]
    words += ["--measure=validation(keep=last) + evaluate(every=2, new_tokens=6)", "--learning-rate=0.02"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    (line,) = [json.loads(text) for text in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    asked = [json.dumps({"question": a["question"], "answer": a["right"]}) + "\n" for a in line["answers"]]
    assert len(asked) == 4  # two passes
    (tmp_path / "asked.jsonl").write_text("".join(asked))
    more = ["--questions", str(tmp_path / "asked.jsonl"), "--new-tokens", "6"]
    assert evaluate([str(tmp_path / "run"), *more]) == 0
    kept = (tmp_path / "run" / "evaluation" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(text)["said"]["global"] for text in kept] == [a["said"] for a in line["answers"]]
    found = json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())["measures"]["global"]
    assert found["f1"] == pytest.approx(line["f1"])


@pytest.mark.slow
def test_a_run_asks_every_few_rounds_and_at_its_end(choices, tmp_path, capsys):
    measure = f"evaluate(every=2, questions='{choices}')"
    assert main([*RUN, "--rounds", "5", "--measure", measure, "--output", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [2, 4, 5]
    assert all(len(line["answers"]) == 5 for line in lines)
    assert "of 5 questions" in capsys.readouterr().out


@pytest.mark.slow
def test_a_server_of_real_clients_asks_its_own_model(choices, federation):
    where = federation(dataset="tiny_lm", measure=f"validation(every=9) + evaluate(every=1, questions='{choices}')")
    assert where.run().round == 2
    lines = [json.loads(line) for line in (where.folder / "server" / "evaluations.jsonl").read_text().splitlines()]
    assert [(line["round"], len(line["answers"])) for line in lines] == [(1, 5), (2, 5)]
    assert "exam.jsonl" not in where.server.gateway.description.config  # which is the server's own affair

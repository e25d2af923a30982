"""Runs that tune a language model and measure trust in it, beside its base."""

from __future__ import annotations

import json

import pytest

from fedpeft.data.made_words import WORDS
from fedpeft.simulate import main
from fedpeft.wiring.measurements import trust_lines
from tests.chat import with_template
from tests.refusals import has_error

SMALL = (
    "--model", "tiny_lm", "--clients", "3", "--cohort", "2", "--rounds", "2", "--partition", "iid", "--workers", "1",
    "--local-work", "steps(2)", "--peft", "lora(rank=2, layers=1)", "--dtype", "fp32", "--tokens", "24",
)  # fmt: skip
TEXTS = "tiny_lm(owners=3, rows=10, test_rows=2)"


@pytest.fixture
def questions(tmp_path):
    rows = [
        {"question": " ".join(WORDS[n : n + 4]), "choices": list(WORDS[n + 4 : n + 7]), "answer": n % 3}
        for n in range(6)
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(folder, dataset, measure, *more):
    assert main([*SMALL, "--dataset", dataset, "--measure", measure, "--output", str(folder), *more]) == 0
    return json.loads((folder / "summary.json").read_text())


def test_choices_are_calibrated_changed_and_predicted_with_uncertainty(tmp_path, questions):
    asked = f"questions='{questions}'"
    measure = f"calibration({asked}) + robustness({asked}, draws=1) + laplace({asked})"
    summary = run(tmp_path / "run", TEXTS, measure)
    trust = summary["trust"]
    calibration, robustness, laplace = (trust[name] for name in ("calibration", "robustness", "laplace"))
    assert calibration["test"]["before"]["rows"] == calibration["base"]["before"]["rows"] == 3
    assert calibration["test"]["before"]["loss"] != calibration["base"]["before"]["loss"]
    assert robustness["rows"] == 6
    assert set(robustness["base"]) == {"clean", "typos", "frames", "order"} <= set(robustness)
    assert laplace["map"]["loss"] == pytest.approx(calibration["test"]["before"]["loss"], rel=1e-3)
    assert laplace["laplace"]["loss"] != laplace["map"]["loss"]
    assert {section["kept_round"] for section in trust.values()} == {summary["kept_round"]}
    lines = trust_lines(summary)
    assert sum("base" in value for value in lines.values()) >= 7


def test_free_answers_of_test_examples_need_no_file(tmp_path):
    file = tmp_path / "said.jsonl"
    rows = [{"messages": [{"role": "user", "content": WORDS[n]}, {"role": "assistant", "content": WORDS[n + 9]}]}
            for n in range(40)]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = str(with_template(tmp_path / "model"))
    measure = "calibration(most=4, new_tokens=2) + robustness(rows=2, draws=1, new_tokens=2)"
    trust = run(tmp_path / "run", f"file:{file}", measure, "--model", model)["trust"]
    assert trust["calibration"]["answers"]["rows"] == 4
    assert 0 < trust["calibration"]["answers"]["confidence"] < 1
    assert "order" not in trust["robustness"]


@pytest.mark.parametrize("privacy", ["", "dp_sgd(epsilon=2)"])
def test_the_exposure_of_planted_secrets_has_the_bound_of_its_privacy(tmp_path, privacy):
    symbols = " ".join(WORDS[:4])
    dataset = f"planted(of='{TEXTS}', count=4, copies=1, length=3, symbols='{symbols}', prompt='{WORDS[9]}')"
    more = ("--privacy", privacy) if privacy else ()
    found = run(tmp_path / "run", dataset, "exposure(references=31)", *more)["trust"]["exposure"]
    assert found["most"] == 5
    assert len(found["each"]) == len(found["each_base"]) == 4
    assert (found["bound"] is None) == (not privacy)
    assert found["bound"] is None or found["unexposed"] < found["bound"] <= found["most"]


@pytest.mark.parametrize(
    ("dataset", "measure", "code"),
    [
        (TEXTS, "calibration", "FP1582"),
        (TEXTS, "calibration(questions='FILE', rows=clients)", "FP1583"),
        ("tiny", "robustness(questions='FILE')", "FP1581"),
        (TEXTS, "exposure", "FP1585"),
        (f"planted(of='{TEXTS}', length=1)", "exposure", "FP1586"),
    ],
)
def test_what_can_t_be_measured_is_refused(tmp_path, capsys, questions, dataset, measure, code):
    model = ("--model", "tiny") if dataset == "tiny" else ()
    words = [*SMALL, "--dataset", dataset, "--measure", measure.replace("FILE", str(questions)), *model]
    assert main([*words, "--output", str(tmp_path / "run")]) == 2
    assert has_error(capsys.readouterr().err, code)


def test_laplace_needs_choices(tmp_path, capsys):
    file = tmp_path / "free.jsonl"
    file.write_text(json.dumps({"question": WORDS[0], "answer": WORDS[1]}))
    words = [*SMALL, "--dataset", TEXTS, "--measure", f"laplace(questions='{file}')"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 2
    assert has_error(capsys.readouterr().err, "FP3266")


def test_one_question_is_refused_before_anything_is_trained(tmp_path, capsys, questions):
    measure = f"calibration(questions='{questions}', most=1)"
    words = [*SMALL, "--dataset", TEXTS, "--measure", measure, "--output", str(tmp_path / "run")]
    assert main(words) == 2
    assert has_error(capsys.readouterr().err, "FP3262")
    assert not (tmp_path / "run" / "rounds.jsonl").exists()

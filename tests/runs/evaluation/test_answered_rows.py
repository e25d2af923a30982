"""What a finished run says of the rows of a file."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from types import SimpleNamespace

import pytest
from rich.console import Console

from fedpeft.commands.predict import create_heartbeat, main
from fedpeft.evaluate import answered_rows
from fedpeft.evaluate.answered_rows import answer_rows
from fedpeft.evaluate.prediction import compute_outputs, compute_probabilities
from fedpeft.parts.families import DATASETS
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.simulate import main as simulate
from tests.refusals import refuses
from tests.tagged import LABELS, sentences, write_jsonl
from tests.targets import prices, tagged

RUN = ["--tokens", "16", "--clients", "3", "--cohort", "all", "--rounds", "1", "--workers", "1", "--local-work",
       "steps(1)", "--peft", "lora(rank=2, layers=1)", "--model", "tiny", "--partition", "iid"]  # fmt: skip
TEXTS = ["a fine day", "rain, and more rain than one has ever seen in this valley", "wind", "a fine day"] * 3


def made(folder, dataset, *more):
    assert simulate([*RUN, "--dataset", dataset, "--output", str(folder / "run"), *more]) == 0
    return FinishedRun.read(folder / "run")


def classes(folder):
    rows = [f"{'good' if i % 2 else 'bad'} thing {i},{'yes' if i % 2 else 'no'}" for i in range(60)]
    (folder / "rows.csv").write_text("body,label\n" + "\n".join(rows) + "\n")
    return made(folder, f"file(path='{folder / 'rows.csv'}', text=body)")


def written(folder, *more, **columns):
    """Return the lines of the table that the command writes for TEXTS with these columns."""
    source, output = folder / "new.jsonl", folder / "answers.csv"
    source.write_text(
        "".join(json.dumps({name: texts[i] for name, texts in columns.items()}) + "\n" for i in range(12))
    )
    assert main([str(folder / "run"), "--data", str(source), "--output", str(output), *more]) == 0
    with output.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_each_row_has_the_answer_that_its_text_has_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(answered_rows, "ROWS", 5)  # the last of three parts has two rows
    run = classes(tmp_path)
    lines = written(tmp_path, body=TEXTS, place=[["a", i] for i in range(12)])
    base = run.base()
    assert [line["body"] for line in lines] == TEXTS
    assert [json.loads(line["place"]) for line in lines] == [["a", i] for i in range(12)]
    for line in lines:
        alone = compute_probabilities(run, base, line["body"])
        assert line["predicted"] == run.labels[int(alone.argmax())]
        assert float(line["probability"]) == pytest.approx(float(alone.max()), abs=1e-4)
    told = capsys.readouterr().out
    assert "12 rows -> " in told
    assert f"{lines[0]['predicted']} " in told
    assert not list(tmp_path.glob("*.part"))


def test_a_column_beside_the_texts_may_hold_half_of_a_character(tmp_path):
    classes(tmp_path)
    lines = written(tmp_path, body=TEXTS, note=["\ud83d"] * 12)
    assert [line["body"] for line in lines] == TEXTS
    assert {line["note"] for line in lines} == {"\\ud83d"}


def test_numbers_and_several_labels_have_columns_of_their_own(tmp_path):
    (tmp_path / "n").mkdir()
    (tmp_path / "l").mkdir()
    run = made(tmp_path / "n", f"file(path={str(prices(tmp_path / 'n' / 'rows.csv', 60))!r}, label=price)")
    lines = written(tmp_path / "n", text=TEXTS)
    base = run.base()
    for line in lines:
        alone = float(run.task.values(compute_outputs(run, base, line["text"])))
        assert float(line["predicted"]) == pytest.approx(alone, rel=1e-4)
    run = made(tmp_path / "l", f"file:{tagged(tmp_path / 'l' / 'rows.jsonl', 60)}")
    lines = written(tmp_path / "l", text=TEXTS)
    base = run.base()
    for line in lines:
        alone = run.task.values(compute_outputs(run, base, line["text"])).tolist()
        found = {name: float(line[f"probability of {name}"]) for name in run.labels}
        assert list(found.values()) == pytest.approx(alone, abs=1e-4)
        assert line["predicted"] == "; ".join(n for n, p in zip(run.labels, alone, strict=True) if p >= 0.5)


@pytest.mark.parametrize("of", ["sample(of={own!r}, rows=40)", "tasks({own!r}, {own!r})"])
def test_a_sample_and_tasks_read_the_texts_of_the_column_that_their_rows_had(tmp_path, of):
    """Not those of a column that is called text, and holds something else."""
    classes(tmp_path)
    own = f"file(path='{tmp_path / 'rows.csv'}', text=body)"
    (tmp_path / "new.csv").write_text("text,body\nx,\n")
    run = SimpleNamespace(folder=tmp_path, dataset=DATASETS.build(of.format(own=own)))
    with refuses("FP3062", "1 row has an empty text in the column 'body"):
        answered_rows._prepare_texts(run, tmp_path / "new.csv", None)


@pytest.mark.fast
def test_tasks_whose_texts_stand_in_several_columns_want_one_named(tmp_path):
    rows = tmp_path / "rows.csv"
    dataset = f"tasks({f'file(path={str(rows)!r}, text=body)'!r}, {f'file(path={str(rows)!r}, text=title)'!r})"
    rows.write_text("body,title\nx,y\n")
    run = SimpleNamespace(folder=tmp_path, dataset=DATASETS.build(dataset))
    with refuses("FP1096", "body, title", "--text"):
        answered_rows._prepare_texts(run, rows, None)
    assert answered_rows._prepare_texts(run, rows, "title")


def test_a_row_below_the_asked_probability_has_no_class(tmp_path, capsys):
    classes(tmp_path)
    lines = written(tmp_path, "--abstain", "1", "--text", "said", said=TEXTS)
    assert {line["predicted"] for line in lines} == {""}
    assert all(float(line["probability"]) > 0 for line in lines)
    assert "none 12" in capsys.readouterr().out


def test_what_can_not_be_answered_is_one_sentence_and_leaves_no_file(tmp_path, capsys, monkeypatch):
    classes(tmp_path)
    monkeypatch.setattr(answered_rows, "ROWS", 2)
    run, output = str(tmp_path / "run"), tmp_path / "answers.csv"
    (tmp_path / "late.csv").write_text("body,predicted_by\na,x\nb,x\nc,x\n ,x\n")
    (tmp_path / "taken.csv").write_text("body,predicted\na,x\n")
    (tmp_path / "none.csv").write_text("body\n")
    (tmp_path / "good.csv").write_text("body\na\nb\nc\n")
    given = ["--output", str(output)]
    for more, words in (
        ([run, "--data", str(tmp_path / "late.csv"), *given], r"1 row has an empty text .*\(line 5\)"),
        ([run, "--data", str(tmp_path / "taken.csv"), *given], "a column 'predicted' already; rename it"),
        ([run, "--data", str(tmp_path / "none.csv"), *given], "has no rows"),
        ([run, "--data", str(tmp_path / "new.csv"), *given], "there is no file"),
        ([run, "--data", str(tmp_path / "late.csv"), *given, "--text", "boddy"], "no column 'boddy' .* --text COLUMN"),
        ([run, "--data", str(tmp_path / "late.csv"), "--output", str(tmp_path / "a.json")], "must end in .csv"),
        ([run, "--data", str(tmp_path / "late.csv"), "--output", str(tmp_path / "late.csv")], "exists already"),
        ([run, "--data", str(tmp_path / "good.csv"), "--output", str(tmp_path / "no" / "a.csv")], "can't be written"),
        ([run, "a text", "--data", str(tmp_path / "late.csv"), *given], "FP1283 "),
        ([run, "--data", str(tmp_path / "late.csv")], "FP1283 "),
        ([run, "a text", *given], "FP1280 "),
    ):
        assert main(more) == 2, words
        error = " ".join(capsys.readouterr().err.split())
        assert re.search(words, error), error
        assert not output.exists()
        assert not list(tmp_path.glob("*.part"))


def test_rows_without_a_text_are_counted_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    classes(tmp_path)
    monkeypatch.setattr(answered_rows, "ROWS", 2)
    monkeypatch.setattr(FinishedRun, "base", lambda run: pytest.fail("the model was loaded"))
    (tmp_path / "new.csv").write_text('body,place\na,x\n"b\nb",x\nc,x\n"",x\nd,x\n" \n",x\n')
    asked = ["--data", str(tmp_path / "new.csv"), "--output", str(tmp_path / "answers.csv")]
    capsys.readouterr()
    assert main([str(tmp_path / "run"), *asked]) == 2
    assert capsys.readouterr().err.split("new.csv: ")[1] == (
        "2 rows have an empty text in the column 'body' (lines 6, 8); fill them in, or leave the rows out\n"
    )
    assert not (tmp_path / "answers.csv").exists()


def test_a_language_model_is_told_where_its_questions_go(tmp_path):
    (tmp_path / "rows.csv").write_text("text\n" + "\n".join(f"one and two are {i}" for i in range(40)) + "\n")
    run = made(tmp_path, f"file(path='{tmp_path / 'rows.csv'}', label=None)", "--model", "tiny_lm")
    with refuses("FP1156"):
        next(answer_rows(run, tmp_path / "rows.csv", None, 0.0))


@pytest.mark.fast
def test_a_silence_before_the_first_row_is_told_once():
    console, said = Console(file=io.StringIO()), Counter()
    beat = create_heartbeat(console, said)
    for _ in range(3):
        beat()
    said["yes"] += 2
    said["no"] += 1
    beat()
    beat()
    assert console.file.getvalue().splitlines() == [
        "...     reading the examples and the model",
        "...     3 rows answered",
    ]


def test_a_table_of_a_spreadsheet_is_detected_and_reported_or_told_the_flag(tmp_path, capsys):
    classes(tmp_path)
    capsys.readouterr()
    source, output = tmp_path / "neu.csv", tmp_path / "answers.csv"
    source.write_bytes("body;ort\nschön, aber naß;Köln\n".encode("latin-1"))
    given = [str(tmp_path / "run"), "--data", str(source), "--output", str(output)]
    assert main(given) == 0
    assert "detected in neu.csv: sep=';', encoding='cp1252'" in capsys.readouterr().out
    with output.open(newline="", encoding="utf-8") as stream:
        (line,) = csv.DictReader(stream)
    assert (line["body"], line["ort"]) == ("schön, aber naß", "Köln")
    output.unlink()
    assert main([*given, "--sep", ";", "--encoding", "latin-1"]) == 0
    assert "detected" not in capsys.readouterr().out
    output.unlink()
    source.write_bytes("body;ort\nхорошо;x\n".encode("cp1251"))
    assert main(given) == 2
    assert re.search(r"is not UTF-8 text .*name\s+its\s+encoding:\s+--encoding", capsys.readouterr().err)
    assert not output.exists()


def test_words_of_a_table_have_a_label_each(tmp_path, monkeypatch):
    monkeypatch.setattr(answered_rows, "ROWS", 5)
    run = made(tmp_path, f"file:{write_jsonl(tmp_path / 'rows.jsonl', sentences(60))}")
    assert run.has_part_labels
    rows = [row["tokens"] for row in sentences(12, 1)]
    lines = written(tmp_path, tokens=[*rows[:11], ["town"] * 40])
    labels = [json.loads(line["predicted"]) for line in lines]
    assert [len(row) for row in labels[:11]] == [len(row) for row in rows[:11]]
    assert {label for row in labels for label in row} <= {*LABELS, ""}
    assert labels[11][-1] == "", "the run reads 16 tokens"
    (tmp_path / "answers.csv").unlink()
    texts = written(tmp_path, "--text", "note", note=[" ".join(row) for row in rows])
    assert [json.loads(line["predicted"]) for line in texts][:11] == labels[:11]
    (tmp_path / "answers.csv").unlink()
    with refuses("FP3193", "line 1", "'tokens'", 5):
        list(answer_rows(run, write_jsonl(tmp_path / "bad.jsonl", [{"tokens": 5}]), "tokens", 0.0))

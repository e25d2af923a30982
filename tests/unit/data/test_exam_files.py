"""LegalBench and MedQA in their original layouts, with made contents: prompts, choices, owners and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedpeft.data.rows import load_dataset
from fedpeft.models.answers.questions import parse_question
from tests.refusals import refuses

PROMPT = "Decide.\n\nQ: first\nA: Yes\n\nQ: {{text}} ({{ slice }})\nA:\n"


def write_task(folder: Path, name: str = "hearsay", answers: tuple[str, ...] = ("Yes", "No"), rows: int = 10) -> Path:
    """Write the files of a task of LegalBench."""
    (folder / name).mkdir(parents=True)
    (folder / name / "base_prompt.txt").write_text(PROMPT)
    for split, count in (("train", 2), ("test", rows)):
        lines = ["index\tanswer\ttext\tslice"]
        lines += [f'{i}\t{answers[i % len(answers)]}\t"a ""{split}"" {i}"\t{name}' for i in range(count)]
        (folder / name / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def legal(folder, **settings):
    given = "".join(f", {name}={value!r}" for name, value in settings.items())
    return load_dataset(f"legalbench(path={str(folder)!r}{given})")


def test_legalbench_fills_the_prompt_and_takes_choices_from_the_shown_examples(tmp_path):
    data = legal(write_task(tmp_path), task="hearsay", test_fraction=0.3)
    assert (len(data.train), len(data.test)) == (7, 3)
    questions = [parse_question(row) for row in [*data.train.inputs, *data.test.inputs]]
    by_text = {question.asked: question for question in questions}
    question = by_text['Decide.\n\nQ: first\nA: Yes\n\nQ: a "test" 3 (hearsay)\nA:']
    assert (question.right, question.choices) == ((" No",), (" Yes", " No"))
    assert len(by_text) == 10  # none of train.tsv, whose answers the prompt shows
    assert set(data.train.owners.tolist()) == {"hearsay"}
    again, other = (legal(tmp_path, task="hearsay", test_fraction=0.3, seed=seed).test.inputs for seed in (0, 1))
    assert again == data.test.inputs != other


def test_answers_that_no_shown_example_has_make_free_questions(tmp_path):
    data = legal(write_task(tmp_path, "citations", tuple("abcdefghij")), task="citations")
    assert parse_question(data.test.inputs[0]).choices == ()
    write_task(tmp_path)
    with refuses("FP3470", "hearsay", "citations"):
        legal(tmp_path, task="hearsay, citations")


def test_several_tasks_are_owners(tmp_path):
    write_task(write_task(tmp_path), "proa", rows=4)
    data = legal(tmp_path, task="hearsay,proa")
    assert np.unique(data.train.owners, return_counts=True)[1].tolist() == [5, 2]


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("base_prompt.txt", "Decide.\nA:", ("FP3473", "base_prompt.txt", "{{text}}")),
        ("base_prompt.txt", "{{contract}}", ("FP3475", "line 2 of", "'contract'", "index, answer, text, slice")),
        ("test.tsv", "index\tlabel\ttext\tslice\n0\tYes\ta\tb\n", ("FP3474", "line 2 of", "answer", "label")),
        ("test.tsv", "index\tanswer\ttext\tslice\n0\tYes\ta\tb\n", ("FP3469", "hearsay", 1)),
        ("test.tsv", None, ("FP3471", "hearsay has no test.tsv", "nguha/legalbench")),
    ],
)
def test_other_files_of_legalbench_are_refused(tmp_path, file, content, error):
    path = write_task(tmp_path) / "hearsay" / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    with refuses(*error):
        legal(tmp_path, task="hearsay")


def test_tasks_of_legalbench_are_names():
    for text in ("", "hearsay,hearsay", "../hearsay"):
        with refuses("FP1782", repr(text)):
            legal("anywhere", task=text)


def record(i: int = 0, **other) -> dict:
    options = {letter: f"drug {k}" for k, letter in enumerate("ABCD")}
    made = {"question": f"Which drug, {i}?", "answer": options["ABCD"[i % 4]], "options": options}
    return made | {"meta_info": ("step1", "step2&3")[i % 2], "answer_idx": "ABCD"[i % 4]} | other


def write_medqa(folder: Path, stem: str, records: list[dict]) -> str:
    folder.mkdir(exist_ok=True)
    for split in ("train", "dev", "test"):
        (folder / f"{stem}{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return f"medqa:{folder}"


@pytest.mark.parametrize("stem", ["", "phrases_no_exclude_"])
def test_medqa_lists_the_options_and_answers_with_a_letter(tmp_path, stem):
    data = load_dataset(write_medqa(tmp_path / "US", stem, [record(i) for i in range(6)]))
    question = parse_question(data.validation.inputs[5])
    assert question.asked == "Which drug, 5?\nA. drug 0\nB. drug 1\nC. drug 2\nD. drug 3\nAnswer:"
    assert (question.right, question.choices) == ((" B",), (" A", " B", " C", " D"))
    assert data.train.owners.tolist() == ["step1", "step2&3"] * 3
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 6, 6)


@pytest.mark.parametrize(
    ("other", "error"),
    [
        ({"question": None}, ("FP3477", "line 1 of", "'question'", None)),
        ({"meta_info": " "}, ("FP3477", "line 1 of", "'meta_info'")),
        ({"options": [{"key": "A", "value": "x"}]}, ("FP3478", "line 1 of", "letters A, B")),
        ({"options": {"A": "x", "C": "y"}}, ("FP3478", "line 1 of", "'C'")),
        ({"answer_idx": "E"}, ("FP3479", "line 1 of", "'E'")),
        ({"answer": "drug 3"}, ("FP3479", "line 1 of", "'A'", "'drug 3'")),
    ],
)
def test_other_rows_of_medqa_are_refused(tmp_path, other, error):
    text = write_medqa(tmp_path, "", [record(**other)])
    with refuses(*error):
        load_dataset(text)


def test_a_folder_without_medqas_files_is_refused(tmp_path):
    with refuses("FP3476", "train.jsonl", "phrases_no_exclude_train.jsonl", "US/4_options"):
        load_dataset(f"medqa:{tmp_path}")

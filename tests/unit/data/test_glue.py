"""GLUE's files in their original layouts, with made contents: texts, labels, owners and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpeft.data.datasets.glue import COLA, TASKS
from fedpeft.data.rows import load_dataset
from tests.refusals import refuses

PARSES = ("sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse")
MNLI = ("index", "promptID", "pairID", "genre", *PARSES, "sentence1", "sentence2", "label1")
FIRST_LINES = {
    "cola": COLA,
    "sst2": ("sentence", "label"),
    "mrpc": ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
    "qqp": ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
    "stsb": (
        *("index", "genre", "filename", "year", "old_index", "source1", "source2"),
        *("sentence1", "sentence2", "score"),
    ),
    "mnli": (*MNLI, "gold_label"),
    "qnli": ("index", "question", "sentence", "label"),
    "rte": ("index", "sentence1", "sentence2", "label"),
    "wnli": ("index", "sentence1", "sentence2", "label"),
}
"""First lines of train.tsv, as GLUE's files have them; CoLA's has none."""

ROWS = 8


def write_task(folder: Path, name: str) -> Path:
    """Write the files of a task; the field of row i in column c is "c i", but labels are the task's, in turn."""
    task = TASKS[name]
    labels = list(task.names) or ["0.000", "2.5", "5.000"]
    (folder / task.folder).mkdir(parents=True)
    for file in ("train.tsv", *task.tests):
        columns = FIRST_LINES[name]
        if name == "mnli" and file != "train.tsv":  # development files have more raters
            columns = (*MNLI, "label2", "label3", "label4", "label5", "gold_label")
        lines = [] if name == "cola" else ["\t".join(columns)]
        for i in range(ROWS):
            held = {column: f'{file[:-4]} "{column} {i}' for column in columns}  # a lone quote, as in some of the files
            held |= {task.label: labels[i % len(labels)], "genre": ("fiction", "letters")[i % 2]}
            lines.append("\t".join(held[column] for column in columns))
        start = "\ufeff" if name == "mrpc" else ""
        (folder / task.folder / file).write_text(start + "\n".join(lines) + "\n", encoding="utf-8")
    return folder


def load(folder, task, **settings):
    given = "".join(f", {name}={value!r}" for name, value in settings.items())
    return load_dataset(f"glue(path={str(folder)!r}, task={task}{given})")


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_read_in_its_own_layout(tmp_path, name):
    task = TASKS[name]
    data = load(write_task(tmp_path, name), name)
    assert (len(data.train), len(data.test)) == (ROWS, ROWS)
    dev = task.tests[0][:-4]
    texts = [f'"{column} 3' for column in task.texts.values()]
    if len(texts) == 1:
        assert data.test.inputs[3] == f"{dev} {texts[0]}"
    else:
        assert data.test.inputs[3] == " ".join(f"{n}: {dev} {t}" for n, t in zip(task.texts, texts, strict=True))
    if name == "stsb":
        assert data.task.startswith("regression")
        assert data.train.labels.tolist()[:4] == [0, 2.5, 5, 0]
    else:
        assert data.task == "classification"
        assert data.label_names == tuple(task.names.values())
        assert data.test.labels.tolist() == [i % len(task.names) for i in range(ROWS)]
        assert not data.labels_of_rows
    owners = data.train.owners
    assert owners is None if not task.owner else owners.tolist()[:2] == ["fiction", "letters"]


def test_mismatched_genres_are_another_test_set(tmp_path):
    folder = write_task(tmp_path, "mnli")
    assert "dev_mismatched" in load(folder, "mnli", mismatched=True).test.inputs[0]
    with refuses("FP1783", "mnli", "task=rte"):
        load(folder, "rte", mismatched=True)


def test_broken_lines_are_counted_or_dropped(tmp_path):
    file = write_task(tmp_path, "qqp") / "QQP" / "train.tsv"
    file.write_text(file.read_text() + '8\t1\t2\tbroken "question\n')
    with refuses("FP3062", "line 10", "glue(..., incomplete=drop)"):
        load(tmp_path, "qqp")
    data = load(tmp_path, "qqp", incomplete="drop")
    assert len(data.train) == ROWS
    assert "1 of 9 rows" in data.notes[0]


@pytest.mark.parametrize(
    ("name", "old", "new", "error"),
    [
        ("rte", "index\tsentence1", "index\tpremise", ("FP3466", "train.tsv", "'sentence1'", "premise")),
        ("rte", "\tnot_entailment\n", "\tmaybe\n", ("FP3468", "line 3 of", "entailment or not_entailment", "'maybe'")),
        ("sst2", "\t1\n", "\t2\n", ("FP3468", "line 3 of", "0 or 1", "'2'")),
        ("wnli", "\t1\n", "\t1\tmore\n", ("FP3467", "line 3 of", 5, 4)),
        ("cola", "\t1\t", "\t", ("FP3468", "line 2 of", "0 or 1")),
        ("stsb", "5.000", "five", ("FP3072", "line 4 of", "finite number", "five")),
    ],
)
def test_other_layouts_are_refused(tmp_path, name, old, new, error):
    file = write_task(tmp_path, name) / TASKS[name].folder / "train.tsv"
    content = file.read_text(encoding="utf-8")
    assert old in content
    file.write_text(content.replace(old, new, 1), encoding="utf-8")
    with refuses(*error):
        load(tmp_path, name)


def test_a_missing_file_names_the_layout(tmp_path):
    with refuses("FP3465", "CoLA/train.tsv", "archives"):
        load(tmp_path, "cola")
    file = write_task(tmp_path, "cola") / "CoLA" / "dev.tsv"
    file.write_bytes(b"made\t1\t\t\xff\xfe\n")
    with refuses("FP3464", "dev.tsv", "utf-8"):
        load(tmp_path, "cola")


def test_the_example_has_as_many_wrong_sentences_as_right_ones():
    data = load("examples/glue", "cola")
    assert (len(data.train), len(data.test)) == (240, 80)
    assert data.test.labels.mean() == 0.5

"""Tasks of GLUE from your own download: `glue(path=FOLDER, task=cola)`.

FOLDER contains the unpacked archives of gluebenchmark.com/tasks, in their original layout:

    task   folder  columns that are read                    measure of the benchmark
    cola   CoLA    second and fourth column, no first line  matthews
    sst2   SST-2   sentence, label                          accuracy
    mrpc   MRPC    #1 String, #2 String, Quality            f1, accuracy
    qqp    QQP     question1, question2, is_duplicate       f1, accuracy
    stsb   STS-B   sentence1, sentence2, score              pearson, spearman
    mnli   MNLI    sentence1, sentence2, gold_label         accuracy
    qnli   QNLI    question, sentence, label                accuracy
    rte    RTE     sentence1, sentence2, label              accuracy
    wnli   WNLI    sentence1, sentence2, label              accuracy

train.tsv is trained on. The labels of test.tsv are not public, so dev.tsv is the test set, as in most papers. Fields
are separated by tabs and have no quotes. Genres of MNLI and STS-B are owners. The script download_glue_data.py writes
MRPC's train.tsv and dev.tsv. Nothing is fetched, and each task has a license of its own. Wang et al. 2018,
arXiv:1804.07461 (abstract only).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedpeft.data import user_rows
from fedpeft.data.incomplete_rows import INCOMPLETE, REFUSE
from fedpeft.data.label_columns import AND
from fedpeft.data.record_files import TablePlace
from fedpeft.data.rows import Dataset
from fedpeft.errors import ConfigError, DataError, shorten_value
from fedpeft.parts import setting

PAIR = {"sentence1": "sentence1", "sentence2": "sentence2"}
ENTAILMENT = {"entailment": "entailment", "not_entailment": "not_entailment"}
DEV = ("dev.tsv",)

COLA = ("source", "label", "star", "sentence")
"""Columns of CoLA, whose files have no first line with names."""


@dataclass(frozen=True)
class GlueTask:
    """Layout of a task.

    Attributes:
        folder: its folder.
        texts: file's column of each text, by the name that stands before the text if there are two.
        label: column of labels.
        names: name of each label, in the order of classes; the second one is that of `f1`. Empty: labels are numbers.
        owner: column of owners; empty: there is none.
        tests: files that can be the test set, the default first.
        columns: columns of a file whose first line does not name them.
    """

    folder: str
    texts: Mapping[str, str]
    label: str
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    owner: str = ""
    tests: tuple[str, ...] = DEV
    columns: tuple[str, ...] = ()

    @property
    def needs(self) -> list[str]:
        """Columns that are read."""
        return [*self.texts.values(), self.label, *filter(None, [self.owner])]


TASKS: Mapping[str, GlueTask] = {
    "cola": GlueTask("CoLA", {"sentence": "sentence"}, "label", {"0": "unacceptable", "1": "acceptable"}, columns=COLA),
    "sst2": GlueTask("SST-2", {"sentence": "sentence"}, "label", {"0": "negative", "1": "positive"}),
    "mrpc": GlueTask(
        "MRPC",
        {"sentence1": "#1 String", "sentence2": "#2 String"},
        "Quality",
        {"0": "not_equivalent", "1": "equivalent"},
    ),
    "qqp": GlueTask(
        "QQP",
        {"question1": "question1", "question2": "question2"},
        "is_duplicate",
        {"0": "not_duplicate", "1": "duplicate"},
    ),
    "stsb": GlueTask("STS-B", PAIR, "score", owner="genre"),
    "mnli": GlueTask(
        "MNLI",
        PAIR,
        "gold_label",
        {name: name for name in ("entailment", "neutral", "contradiction")},
        "genre",
        ("dev_matched.tsv", "dev_mismatched.tsv"),
    ),
    "qnli": GlueTask("QNLI", {"question": "question", "sentence": "sentence"}, "label", ENTAILMENT),
    "rte": GlueTask("RTE", PAIR, "label", ENTAILMENT),
    "wnli": GlueTask("WNLI", PAIR, "label", {"0": "not_entailment", "1": "entailment"}),
}


@dataclass(frozen=True)
class Glue:
    """Examples of one task of GLUE."""

    path: str = setting(dataclasses.MISSING, "folder with the unpacked archives: CoLA, MNLI, ...", path=True)
    task: str = setting("cola", "task", choices=tuple(TASKS))
    mismatched: bool = setting(False, "mnli: test on the genres that do not occur in training")
    incomplete: str = setting(
        REFUSE,
        "lines with too few fields, as in QQP, or an empty one; drop: leave them out and report their number",
        choices=INCOMPLETE,
    )

    def load(self) -> Dataset:
        """Return the examples of train.tsv and dev.tsv, checked.

        Raises:
            ConfigError: `mismatched` is set for another task than mnli.
            DataError: a file is missing, can't be read or has another layout.
        """
        task = TASKS[self.task]
        if self.mismatched and len(task.tests) < 2:
            raise ConfigError(f"FP1783 only mnli has mismatched test examples; leave it out for task={self.task}")
        train, test = (self._read_table(task, name) for name in ("train.tsv", task.tests[self.mismatched]))
        known = user_rows.KnownLabels(names=tuple(task.names.values()) or None)
        return user_rows.build_dataset(f"glue {self.task}", train, test, 0.0, 0, None, known, task.label)

    def _read_table(self, task: GlueTask, file: str) -> user_rows.Table:
        folder = Path(self.path).expanduser() / task.folder
        if not (folder / file).is_file():
            raise DataError(
                f"FP3465 there is no file {folder / file}; give the folder in which GLUE's archives were unpacked, "
                f"with {task.folder}/train.tsv and {task.folder}/{task.tests[self.mismatched]}"
            )
        text = AND.join(task.texts)
        label_type = "class" if task.names else "number"
        names = user_rows.Names(text, "label", task.owner or None, "glue(...)", label_type, self.incomplete)
        return user_rows.read(str(folder / file), read_lines(folder / file, task), names)


def read_lines(path: Path, task: GlueTask) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the examples of a file with their places; fields that a line lacks are empty.

    Raises:
        DataError: the file can't be read, or a line or the first one has another layout.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as stream:
            columns = task.columns or tuple(stream.readline().rstrip("\r\n").split("\t"))
            if missing := [name for name in task.needs if name not in columns]:
                raise DataError(
                    f"FP3466 {path} does not have the columns of GLUE: its first line lacks "
                    f"{', '.join(map(repr, missing))} and has {shorten_value(columns)}"
                )
            for number, line in enumerate(stream, 1 if task.columns else 2):
                fields = line.rstrip("\r\n").split("\t")
                if len(fields) > len(columns):
                    raise DataError(
                        f"FP3467 line {number} of {path} has {len(fields)} fields, but {task.folder} has "
                        f"{len(columns)} in a line; give GLUE's original file"
                    )
                held = dict(zip(columns, fields + [""] * (len(columns) - len(fields)), strict=True))
                record = {name: held[column] for name, column in task.texts.items()}
                record["label"] = _name_label(held[task.label], task, f"line {number} of {path}")
                if task.owner:
                    record[task.owner] = held[task.owner]
                yield TablePlace(f"line {number}"), record
    except OSError as error:
        raise DataError(f"FP3037 can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"FP3464 {path} is not utf-8 text (byte {error.start}); give GLUE's original file") from None


def _name_label(value: str, task: GlueTask, where: str) -> str:
    """Return the name of a label; an empty one stays empty.

    Raises:
        DataError: the task has no such label.
    """
    if not task.names or not value.strip():
        return value
    if value not in task.names:
        raise DataError(
            f"FP3468 {where}: the label of {task.folder} must be {' or '.join(task.names)}, got {shorten_value(value)}"
        )
    return task.names[value]


part = Glue

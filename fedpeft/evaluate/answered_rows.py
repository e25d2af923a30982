"""Answers of a finished run to the rows of a file: the file's columns, followed by the answers.

The columns of an answer depend on the task:

- words: predicted, a JSON list with the label of each word.
- classes: predicted, and its probability at the run's temperature.
- several labels: predicted, joined by "; ", and the probability of each label.
- numbers: predicted, in the unit of the labels.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fedpeft.data.examples import Examples
from fedpeft.data.image_companions import MASK
from fedpeft.data.image_folders import FILE_NAME, has_pictures, list_unlabeled_pictures
from fedpeft.data.record_files import Record, read_records
from fedpeft.data.table_format import DETECT, TableFormat
from fedpeft.data.tagged_records import find_word_column
from fedpeft.data.tokens import tokenize_texts
from fedpeft.data.user_rows import Names, check_texts, get_text_column, read
from fedpeft.errors import ConfigError, DataError, shorten_value
from fedpeft.evaluate.patch_labels import label_pictures
from fedpeft.evaluate.word_labels import label_words
from fedpeft.machine import files
from fedpeft.machine.spreadsheet import escape_cell
from fedpeft.models import scoring
from fedpeft.models.abilities import DescribesImages
from fedpeft.reporting.finished_run import FinishedRun

ROWS = 512
"""Number of the file's rows in memory at a time."""

PICTURES_AT_ONCE = 64
"""Number of images in memory at a time; an image of 224 pixels a side takes 0.6 MB."""

PREDICTED = "predicted"
PROBABILITY = "probability"

Answer = dict[str, str]
"""Values of an answer by column."""


def build_answer(run: FinishedRun, outputs: Tensor, abstain: float = 0.0) -> Answer:
    """Return the answer for a head's outputs (outputs,); it has no class if none is as likely as `abstain`."""
    names = run.labels or []
    if run.task.targets == "numbers":
        return {PREDICTED: f"{run.task.values(outputs).tolist()[0]:.6g}"}
    if run.task.targets == "labels":
        chances = dict(zip(names, run.task.values(outputs).tolist(), strict=True))
        said = "; ".join(name for name, chance in chances.items() if chance >= 0.5)
        return {PREDICTED: said} | {f"{PROBABILITY} of {name}": f"{chance:.4f}" for name, chance in chances.items()}
    found = (outputs / run.temperature).softmax(-1)
    best = int(found.argmax())
    likely = float(found[best])
    return {PREDICTED: names[best] if likely >= abstain else "", PROBABILITY: f"{likely:.4f}"}


def answer_rows(
    run: FinishedRun, source: Path, column: str | None, abstain: float, given: TableFormat = DETECT
) -> Iterator[tuple[Record, Answer]]:
    """Yield the rows of a file in order, each with the model's answer.

    Args:
        run: a run of a classifier with one class, several labels or a number per row, or with labels of words.
        source: a file that `--dataset file:` reads, or a folder or table of images; labels are optional.
        column: text column; None: as in the run's own data. Images have none.
        abstain: probability below which a row gets no class, 0 to 1.
        given: the format of text files.

    Raises:
        FedpeftError: the run gives other answers, or its files are missing; or the rows can't be read.
    """
    if isinstance(run.task, DescribesImages):
        raise ConfigError(
            f"FP1155 {run.folder} writes captions; give it image files: fedpeft predict RUN IMAGE IMAGE ..."
        )
    if run.labels is None:
        raise ConfigError(
            f"FP1156 {run.folder} has no classes; for a file of questions to a language model, use fedpeft evaluate"
        )
    if abstain and run.task.targets != "classes":
        raise ConfigError(f"FP1157 {run.folder} does not choose one class; leave --abstain out")
    if run.has_part_labels:
        yield from (_answer_patches if run.is_image_model else _answer_words)(run, source, column, given)
        return
    waiting, encode, at_once = (_prepare_pictures if run.is_image_model else _prepare_texts)(run, source, column, given)
    model = run.model(run.base())
    while rows := list(islice(waiting, at_once)):
        encoded = encode(rows)
        outputs: dict[int, Tensor] = {}
        for places in scoring.score_batches(encoded):
            outputs |= zip(places.tolist(), scoring.compute_logits(model, encoded.batch(places)), strict=True)
        yield from ((row, build_answer(run, outputs[i], abstain)) for i, row in enumerate(rows))


Source = tuple[Iterator[Record], Callable[[list[Record]], Examples], int]
"""Rows, the conversion of some of them to model input, and how many are in memory at a time."""


def _answer_words(
    run: FinishedRun, source: Path, column: str | None, given: TableFormat
) -> Iterator[tuple[Record, Answer]]:
    """Yield answers to rows of words, as lists or as texts with spaces; all are checked before the model is loaded."""
    text = column or get_text_column(run.dataset)
    _, first = next(read_records(str(source), given), ("", {}))
    words = find_word_column(first, text)

    def get_words(place: str, record: Mapping[str, Any]) -> list[str]:
        held = value = record.get(words or text)
        if not words:
            held = value.split() if isinstance(value, str) else None
        if not isinstance(held, list) or not held or not all(isinstance(word, str) for word in held):
            raise DataError(
                f"FP3193 {place} of {source}: the column {words or text!r} must hold a list of words, or a text, got "
                f"{shorten_value(value)}; name yours: --text COLUMN"
            )
        return held

    for place, record in read_records(str(source), given):
        get_words(place, record)
    model, waiting = run.model(run.base()), read_records(str(source), given)
    while rows := list(islice(waiting, ROWS)):
        labels = label_words(run, model, [get_words(*row) for row in rows])
        yield from (
            (row, {PREDICTED: json.dumps(of, ensure_ascii=False)}) for row, of in zip(rows, labels, strict=True)
        )


def _answer_patches(
    run: FinishedRun, source: Path, column: str | None, given: TableFormat
) -> Iterator[tuple[Record, Answer]]:
    """Yield the labels of each image's patches, row by row, as a JSON list."""
    waiting, _, at_once = _prepare_pictures(run, source, column, given)
    model, pictures = run.model(run.base()), (r for r in waiting if not str(r[1][FILE_NAME]).endswith(MASK.ending))
    while rows := list(islice(pictures, at_once)):
        labels = label_pictures(run, model, [str(record[FILE_NAME]) for _, record in rows])
        yield from (
            (row, {PREDICTED: json.dumps(of, ensure_ascii=False)}) for row, of in zip(rows, labels, strict=True)
        )


def _prepare_texts(run: FinishedRun, source: Path, column: str | None, given: TableFormat = DETECT) -> Source:
    """Check all texts of a file before the model is loaded, and return them as a source."""
    if has_pictures(source):
        raise ConfigError(f"FP1158 {run.folder} reads texts, but {source} contains images; give --data a file of texts")
    names = Names(column or get_text_column(run.dataset), None, None, "--text COLUMN", form=given)
    check_texts(str(source), read_records(str(source), given), names)

    def encode(rows: list[Record]) -> Examples:
        texts = list(read(str(source), rows, names).texts)
        return tokenize_texts(texts, np.zeros(len(texts), np.int64), run.model_directory, run.tokens)

    return read_records(str(source), given), encode, ROWS


def _prepare_pictures(run: FinishedRun, source: Path, column: str | None, given: TableFormat) -> Source:
    """Return the images of a folder or table as a source."""
    if column is not None:
        raise ConfigError(f"FP1159 {run.folder} reads images, which the column {FILE_NAME} names; leave --text out")

    def encode(rows: list[Record]) -> Examples:
        return run.load_pictures([str(record[FILE_NAME]) for _, record in rows])

    return iter(list_unlabeled_pictures(source, given)), encode, PICTURES_AT_ONCE


def write(pairs: Iterator[tuple[Record, Answer]], output: Path) -> Iterator[Answer]:
    """Write rows with their answers as CSV, completely or not at all; yield each answer that was written.

    The columns are those of the first row. Lists and objects of JSON are written as JSON. A text that a spreadsheet
    would run as a formula starts with an apostrophe (`fedpeft.machine.spreadsheet`).

    Raises:
        DataError: the file has no rows, or a column with an answer's name.
        RunError: the disk is full or can't be written.
    """
    first = next(pairs, None)
    if first is None:
        raise DataError("FP3163 the file has no rows")
    (place, record), answer = first
    if taken := sorted(record.keys() & answer.keys()):
        raise DataError(f"FP3164 {place} has a column {taken[0]!r} already; rename it, or leave it out")
    partly = output.with_name(f"{output.name}.part")
    try:
        with files.raise_write_errors(output):
            # half of a character in a column other than that of the texts is written as an escape
            partly.unlink(missing_ok=True)  # left by a killed command; a link would lead to another file
            with partly.open("x", newline="", encoding="utf-8", errors="backslashreplace") as stream:
                table = csv.writer(stream)
                table.writerow(map(_format_cell, [*record, *answer]))
                for (_, row), said in chain([first], pairs):
                    table.writerow(
                        [
                            *(_format_cell(row.get(name)) for name in record),
                            *(_format_cell(said[name]) for name in answer),
                        ]
                    )
                    yield said
            os.replace(partly, output)
    finally:
        with suppress(OSError):
            partly.unlink(missing_ok=True)


def _format_cell(value: Any) -> str:
    """Return the text of a cell, escaped so that no spreadsheet runs it as a formula."""
    if value is None:
        return ""
    return escape_cell(json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value))

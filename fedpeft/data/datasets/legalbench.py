"""Tasks of LegalBench from your own download: `legalbench(path=FOLDER, task=abercrombie)`.

FOLDER contains a folder for each task with the benchmark's files:

    base_prompt.txt  the prompt with a few solved examples; {{text}} stands for a column of the question
    train.tsv        the examples that the prompt shows
    test.tsv         the questions, with the columns index, answer and those of the prompt

github.com/HazyResearch/legalbench has the first two in tasks/NAME, and the dataset nguha/legalbench on the hub has the
last two in data/NAME. The prompt already contains the answers of train.tsv, so nothing is trained on them. Since other
training examples do not exist, a share of test.tsv is trained on and the rest is the test set. Scores are therefore not
those of the benchmark, which tests on all of it.

If train.tsv contains every answer of test.tsv, its answers are the choices of each question, and `evaluate` measures
which one is the likeliest. Otherwise answers are free. Owners are tasks. Nothing is fetched, and each task has a
license of its own. Guha et al. 2023, arXiv:2308.11462 (abstract only).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.data.conversations import pack_choice
from fedpeft.data.record_files import read_records
from fedpeft.data.rows import Dataset, Rows
from fedpeft.errors import ConfigError, DataError
from fedpeft.machine.seeds import create_generator
from fedpeft.parts import setting

PROMPT, TRAIN, TEST = "base_prompt.txt", "train.tsv", "test.tsv"
ANSWER = "answer"
FIELD = re.compile(r"{{\s*([^{}]+?)\s*}}")
"""Place of a column in a prompt."""


def parse_tasks(text: str) -> tuple[str, ...]:
    """Return the names in "a, b, c".

    Raises:
        ConfigError: there is none, one occurs twice, or one is a path.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names or len(set(names)) < len(names) or any(Path(name).name != name for name in names):
        raise ConfigError(f"FP1782 task={text!r} must name tasks of LegalBench, each once: abercrombie,hearsay")
    return names


@dataclass(frozen=True)
class LegalBench:
    """Questions of one or several tasks of LegalBench."""

    path: str = setting(dataclasses.MISSING, "folder with a folder for each task", path=True)
    task: str = setting("abercrombie", "task, or several in quotes: 'abercrombie,hearsay'", check=parse_tasks)
    test_fraction: float = setting(0.5, "share of test.tsv that is the test set", above=0.0, high=0.9)
    seed: int = setting(0, "seed of the test set; not the run's seed", low=0)

    def load(self) -> Dataset:
        """Return the questions, checked.

        Raises:
            DataError: a file is missing, can't be read or has another layout, or only some tasks have choices.
        """
        parts: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
        forms: dict[bool, str] = {}
        for task in parse_tasks(self.task):
            rows, has_choices = read_task(Path(self.path).expanduser() / task)
            forms.setdefault(has_choices, task)
            if len(rows) < 2:
                raise DataError(f"FP3469 the task {task} has {len(rows)} questions in {TEST}, but needs two or more")
            order = create_generator(self.seed, f"legalbench {task}").permutation(len(rows)).tolist()
            tests = set(order[: min(max(round(self.test_fraction * len(rows)), 1), len(rows) - 1)])
            for i, row in enumerate(rows):
                parts["test" if i in tests else "train"].append((row, task))
        if len(forms) > 1:
            raise DataError(
                f"FP3470 the task {forms[True]} has choices, but answers of {forms[False]} are free; give them to "
                "separate runs"
            )
        train, test = (Rows([row for row, _ in part], None, np.array([o for _, o in part])) for part in parts.values())
        return Dataset("legalbench", "text", "instruction", train, test, None, "smollm2")


def read_task(folder: Path) -> tuple[list[str], bool]:
    """Return the packed questions of a task's test.tsv in order, and whether they have choices.

    Raises:
        DataError: a file is missing, can't be read or has another layout.
    """
    if missing := [name for name in (PROMPT, TRAIN, TEST) if not (folder / name).is_file()]:
        raise DataError(
            f"FP3471 {folder} has no {' and no '.join(missing)}; put {PROMPT} and {TRAIN} of HazyResearch/legalbench "
            f"and {TEST} of nguha/legalbench there"
        )
    try:
        prompt = (folder / PROMPT).read_text(encoding="utf-8-sig").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"FP3472 can't read {folder / PROMPT} as utf-8 text: {error}") from None
    if not FIELD.search(prompt):
        raise DataError(f"FP3473 {folder / PROMPT} contains no place for a column, such as {{{{text}}}}")
    shown, asked = (
        [_get_answer(*row, folder / name) for row in read_records(str(folder / name))] for name in (TRAIN, TEST)
    )
    known = tuple(dict.fromkeys(answer for _, _, answer in shown))
    choices = known if len(known) > 1 and {answer for _, _, answer in asked} <= set(known) else ()
    rows = []
    for place, record, answer in asked:
        where = f"{place} of {folder / TEST}"
        rows.append(pack_choice(_fill_prompt(prompt, record, where), answer, choices, where))
    return rows, bool(choices)


def _get_answer(place: str, record: Mapping[str, Any], path: Path) -> tuple[str, Mapping[str, Any], str]:
    answer = record.get(ANSWER)
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(
            f"FP3474 {place} of {path} must have a text in the column {ANSWER!r}, as LegalBench has; it has the "
            f"columns {', '.join(map(str, record))}"
        )
    return place, record, answer.strip()


def _fill_prompt(prompt: str, record: Mapping[str, Any], where: str) -> str:
    """Return the prompt with the question's values in its places."""

    def get_value(found: re.Match[str]) -> str:
        if found[1] not in record:
            raise DataError(
                f"FP3475 {where} has no column {found[1]!r}, which {PROMPT} names; it has {', '.join(map(str, record))}"
            )
        return str(record[found[1]])

    return FIELD.sub(get_value, prompt)


part = LegalBench

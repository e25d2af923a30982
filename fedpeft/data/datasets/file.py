"""Your own texts in a CSV, TSV or JSONL file (UTF-8): `file:PATH`, or `file(path="PATH", text="body", label="topic")`.

The first line of a CSV or TSV file names the columns; a JSONL file has one JSON object per line. Lines with
conversations, {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}, are
instruction data: the model's chat template is applied, or that of a file, and the loss is that of the answers. So are
rows of columns with a `template`: file(path="PATH", template="alpaca") reads the columns instruction, input and output.
Rows of a prompt with a chosen and a rejected answer are preferences, which are learned by DPO.
Without a file of test rows, a seeded share of each class is held out. The data is yours, and so is its licence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fedpeft.data import user_rows
from fedpeft.data.conversations import with_messages, with_prompts
from fedpeft.data.preferences import PROMPT, SIDES, with_preferences
from fedpeft.data.rows import Dataset
from fedpeft.data.user_rows import records
from fedpeft.parts import setting

MESSAGES = "messages"


@dataclass(frozen=True)
class File:
    """Rows from a file of named columns."""

    argument: ClassVar[str] = "path"

    path: str = setting(dataclasses.MISSING, "the file: .csv, .tsv or .jsonl", path=True)
    text: str = setting("text", "name of the column with the texts")
    label: str | None = setting("label", "name of the column with the classes; None: no classes, language modelling")
    owner: str | None = setting(None, "name of the column that says whose row it is, for the natural partition")
    messages: str | None = setting(
        None, "name of the column with conversations, for instruction data; messages where there is no text column"
    )
    template: str | None = setting(
        None,
        "instruction data: alpaca, chat (the model's own) or FILE.jinja, a template of columns or messages",
        path=True,
    )
    answer: str = setting("output", "name of the column with the answers, where a template writes the prompts")
    beta: float = setting(
        0.1, "preferences: how much it costs to leave the base's answers (DPO)", above=0.0, high=100.0
    )
    test: str | None = setting(
        None, "a file of test rows with the same columns; None: hold some of `path` out", path=True
    )
    test_fraction: float = setting(0.2, "share of the rows held out for test when `test` is None", above=0.0, high=0.9)
    seed: int = setting(0, "seed of the held-out share; not the run's seed", low=0)

    def load(self) -> Dataset:
        """The rows, checked.

        Raises:
            ConfigError: the file's ending says neither CSV, TSV nor JSONL.
            DataError: it can't be read, or its rows can't be used; the message names the line.
        """
        _, first = next(records(self.path), ("", {}))
        task = self._task(first)
        names = user_rows.Names(self.text, self.label if task is None else None, self.owner)

        def table(path: str) -> user_rows.Table:
            return user_rows.read(path, self._packed(path, first), names)

        test = None if self.test is None else table(self.test)
        made = user_rows.dataset(Path(self.path).name, table(self.path), test, self.test_fraction, self.seed)
        return made if task is None else dataclasses.replace(made, task=task)

    def _packed(self, path: str, first: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The records of a file, with what is not text packed into the text column."""
        found, messages = records(path), self._messages(first)
        if self._preferences(first):
            found = with_preferences(found, self.text, path, self.template)
        elif messages:
            found = with_messages(found, messages, self.text, path, self.template)
        elif self.template:
            found = with_prompts(found, self.template, self.answer, self.text, path)
        return found

    def _task(self, first: Mapping[str, Any]) -> str | None:
        """What is learned of questions and answers; None: the rows are texts."""
        if self._preferences(first):
            return f"dpo(beta={self.beta})"
        return "instruction" if self._messages(first) or self.template else None

    def _messages(self, first: Mapping[str, Any]) -> str | None:
        """The column of conversations: as it is named, or the usual one, if the first record has it and no text."""
        return self.messages or (MESSAGES if MESSAGES in first and self.text not in first else None)

    def _preferences(self, first: Mapping[str, Any]) -> bool:
        """Whether the first record has a prompt with two answers, and no text."""
        return {PROMPT, *SIDES} <= set(first) and self.text not in first


part = File

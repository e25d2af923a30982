"""Your own texts in a CSV, TSV or JSONL file (UTF-8): `file:PATH`, or `file(path="PATH", text="body", label="topic")`.

The first line of a CSV or TSV file names the columns; a JSONL file has one JSON object per line. Lines with
conversations, {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}, are
instruction data: the model's chat template is applied, or that of a file, and the loss is that of the answers. So are
rows of columns with a `template`: file(path="PATH", template="alpaca") reads the columns instruction, input and output.
Without a file of test rows, a seeded share of each class is held out. The data is yours, and so is its licence.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedpeft.data import user_rows
from fedpeft.data.conversations import with_messages, with_prompts
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
        messages = self.messages or self._found_messages()
        instructions = bool(messages or self.template)
        names = user_rows.Names(self.text, None if instructions else self.label, self.owner)

        def table(path: str) -> user_rows.Table:
            found = records(path)
            if messages:
                found = with_messages(found, messages, self.text, path, self.template)
            elif self.template:
                found = with_prompts(found, self.template, self.answer, self.text, path)
            return user_rows.read(path, found, names)

        test = None if self.test is None else table(self.test)
        made = user_rows.dataset(Path(self.path).name, table(self.path), test, self.test_fraction, self.seed)
        return dataclasses.replace(made, task="instruction") if instructions else made

    def _found_messages(self) -> str | None:
        """The usual column of conversations, if the first record has it and no text."""
        _, first = next(records(self.path), ("", {}))
        return MESSAGES if MESSAGES in first and self.text not in first else None


part = File

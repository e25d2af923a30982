"""Your own rows: `file:PATH`, or `file(path="PATH", text="body", label="topic")`.

PATH is a file of named columns, CSV, TSV, JSON lines, JSON, Parquet or Arrow, plain or .gz (UTF-8; the first line of a
CSV or TSV file names the columns); a .txt file, whose lines are the column text; or a folder: a data set that
`save_to_disk` of the `datasets` library has written, single or with splits; files train, validation and test; a file
for each client; or pictures, in a folder for each class or with a metadata.csv of file_name and label. Parquet, Arrow
and saved data sets need the extra `hub`.

`text="premise + hypothesis"` makes one text of two columns, each after its name, as T5 writes pairs (Raffel et al.,
2020, appendix D). Labels that are numbers with fractions are predicted (regression), in units of the training rows'
mean and deviation or of those that are given; lists of labels, or columns of 0 and 1 (`label="toxic + insult"`), are
several labels a row; all else is one class. Instruction data are told by their columns, where there is none called as
`text` says: messages, conversations (ShareGPT), instruction and output (alpaca), prompt and completion. The model's
chat template is applied, or a `template`, and the loss is that of the answers. A prompt with a chosen and a rejected
answer is a preference, learned by DPO. Columns input and target, or any that `text` and `target` name, are pairs of
texts for an encoder with a decoder: `file(path="FILE", text=article, target=summary)`. Without test rows, a seeded
share of each class is held out. The data is yours, and so is its licence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fedpeft.data import user_rows
from fedpeft.data.image_folders import FILE_NAME, holds_pictures, picture_records, pixels_of
from fedpeft.data.incomplete_rows import INCOMPLETE, REFUSE
from fedpeft.data.instruction_columns import Reading, reading
from fedpeft.data.label_columns import KINDS
from fedpeft.data.record_folders import OWNER, Splits, records_below, splits_of
from fedpeft.data.rows import NO_MODEL, Dataset
from fedpeft.errors import ConfigError
from fedpeft.parts import setting


@dataclass(frozen=True)
class File:
    """Rows from a file or folder of your own."""

    argument: ClassVar[str] = "path"

    path: str = setting(
        dataclasses.MISSING, "the file (.csv, .tsv, .jsonl, .json, .txt, .parquet, .arrow, or .gz) or folder", path=True
    )
    text: str = setting("text", "name of the column with the texts; of two: 'premise + hypothesis'")
    label: str | None = setting(
        "label", "name of the column with classes, numbers or lists of labels, or 'toxic + insult'; None: language"
    )
    label_type: str = setting("auto", "what the labels are; auto: as they look, which is said", choices=KINDS)
    labels: str | None = setting(
        None, "names of classes or labels in order: a,b,c; None: those that occur in the training rows"
    )
    mean: float | None = setting(None, "of numbers to predict, where known; None: of the training rows")
    deviation: float | None = setting(None, "standard deviation of the same; None: of the training rows", above=0)
    owner: str | None = setting(None, "name of the column that says whose row it is, for the natural partition")
    incomplete: str = setting(
        REFUSE,
        "rows without a text, an answer, a label or an owner, of training, validation and test alike; drop: they are "
        "left out, which is said",
        choices=INCOMPLETE,
    )
    messages: str | None = setting(
        None, "name of the column with conversations, for instruction data; messages where there is no text column"
    )
    template: str | None = setting(
        None,
        "instruction data: alpaca, chat (the model's own) or FILE.jinja, a template of columns or messages",
        path=True,
    )
    answer: str = setting("output", "name of the column with the answers, where a template writes the prompts")
    target: str | None = setting(
        None, "name of the column with the texts that a decoder is to write (T5, BART); `text` is what is read"
    )
    beta: float = setting(
        0.1, "preferences: how much it costs to leave the base's answers (DPO)", above=0.0, high=100.0
    )
    validation: str | None = setting(
        None, "a file of validation rows with the same columns; None: that of the folder, or held out", path=True
    )
    test: str | None = setting(
        None,
        "a file of test rows with the same columns; None: that of the folder, or hold some of `path` out",
        path=True,
    )
    test_fraction: float = setting(0.2, "share of the rows held out for test when there are none", above=0.0, high=0.9)
    side: int = setting(
        64,
        "pixels per side that pictures are brought to; up to 64 the model sees 4 x 4 patches, above as many whole ones "
        "as fit",
        low=8,
        high=512,
    )
    seed: int = setting(0, "seed of the held-out share; not the run's seed", low=0)

    task_in_rows: ClassVar[bool] = True

    def load(self) -> Dataset:
        """The rows, checked.

        Raises:
            ConfigError: the file's ending does not say how to read it, or a library is missing that reads it.
            DataError: it can't be read, or its rows can't be used; the message names the line.
        """
        splits = self._splits()
        pictures = holds_pictures(splits.train)
        _, first = next(_records(splits.train, pictures), ("", {}))
        instructions = (
            None
            if pictures
            else reading(first, self.text, self.messages, self.template, self.answer, self.beta, self.target)
        )
        names = user_rows.Names(
            FILE_NAME if pictures else self.text,
            None if instructions else self.label,
            self.owner or (OWNER if OWNER in first and splits.train.is_dir() else None),
            f"file(path={self.path!r}, ROLE=COLUMN)",
            self.label_type,
            self.incomplete,
        )
        train, validation, test = (
            None if path is None else _table(path, pictures, instructions, names)
            for path in (splits.train, splits.validation, splits.test)
        )
        assert train is not None
        name = Path(self.path).expanduser().name
        known, column = user_rows.Known.of(self.mean, self.deviation, self.labels), self.label or "label"
        made = user_rows.dataset(name, train, test, self.test_fraction, self.seed, validation, known, column)
        made = dataclasses.replace(made, notes=(*made.notes, *self._notes(splits, instructions, names)))
        if instructions:
            model = NO_MODEL if instructions.task == "seq2seq" else made.default_model
            task, template = instructions.task, instructions.template
            return dataclasses.replace(made, task=task, template=template, default_model=model)
        return user_rows.of_pictures(made, lambda files: pixels_of(files, self.side)) if pictures else made

    def _splits(self) -> Splits:
        """Where the rows are, the settings before what is found."""
        found = splits_of(Path(self.path).expanduser())
        given = {
            name: Path(path).expanduser()
            for name in ("validation", "test")
            if (path := getattr(self, name)) is not None
        }
        return dataclasses.replace(found, **given)

    def _notes(self, splits: Splits, instructions: Reading | None, names: user_rows.Names) -> tuple[str, ...]:
        """What was taken by itself, in one line each."""
        notes = []
        if instructions and not (self.messages or self.template or self.target):
            notes.append(f"taken as {instructions.said}")
        if splits.train != Path(self.path).expanduser():
            parts = [path.name for path in (splits.train, splits.validation, splits.test) if path is not None]
            notes.append(f"rows of {', '.join(parts)} in {self.path}")
        if names.owner == OWNER and not self.owner:
            notes.append("each file is a client's: --partition natural --clients 0 gives each client its own")
        return tuple(notes)


def _records(path: Path, pictures: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    return picture_records(path) if pictures else records_below(path)


def _table(path: Path, pictures: bool, instructions: Reading | None, names: user_rows.Names) -> user_rows.Table:
    """One split's rows."""
    if pictures and not holds_pictures(path):
        raise ConfigError(
            f"{path} holds no pictures, and the training rows are pictures; give a folder of the same kind"
        )
    if names.owner == OWNER and not path.is_dir():  # one file of test rows belongs to nobody
        names = dataclasses.replace(names, owner=None)
    found = _records(path, pictures)
    if not instructions:
        return user_rows.read(str(path), found, names)
    owner = {} if names.owner is None else {"owner": names.owner}
    complete = names.complete(found, str(path), {**instructions.needs, **owner})
    table = user_rows.read(str(path), instructions.packed(complete, str(path)), names)
    return dataclasses.replace(table, left_out=complete.note)


part = File

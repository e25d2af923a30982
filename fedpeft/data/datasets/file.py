"""Your own rows: `file:PATH`, or `file(path="PATH", text="body", label="topic")`.

PATH is a file of named columns, CSV, TSV, JSON lines, JSON, Parquet or Arrow, plain or .gz (the first line of a CSV or
TSV file names the columns); a CoNLL file; a .txt file, whose lines are the column text; or a folder: a data set that
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
texts for an encoder with a decoder: `file(path="FILE", text=article, target=summary)`. Columns of words and tags are
token labels: `file(path="FILE", text=tokens, label=ner_tags)`. Separator, encoding and decimal comma of a table, and
a column called owner, client, site or hospital, are detected and reported. Without test rows, a seeded share of each
class is held out. The data is yours, and so is its licence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fedpeft.data import user_rows
from fedpeft.data.image_folders import FILE_NAME, has_pictures, read_picture_records, read_pixels
from fedpeft.data.incomplete_rows import INCOMPLETE, REFUSE
from fedpeft.data.instruction_columns import ColumnReading, choose_reading
from fedpeft.data.label_columns import AND, KINDS
from fedpeft.data.owner_columns import find_owner
from fedpeft.data.prompt_templates import check_template
from fedpeft.data.record_folders import OWNER, Splits, find_splits, format_notes, read_records_below
from fedpeft.data.rows import NO_MODEL, Dataset
from fedpeft.data.table_format import AUTO, DECIMALS, TableFormat
from fedpeft.data.tagged_records import TASK as TOKEN_LABELS
from fedpeft.data.tagged_records import choose_tag_reading, convert_tags
from fedpeft.errors import ConfigError, FedpeftError
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
    label_type: str = setting("auto", "what the labels are; auto: as they look; it is reported", choices=KINDS)
    labels: str | None = setting(
        None, "names of classes or labels in order: a,b,c; None: those that occur in the training examples"
    )
    mean: float | None = setting(None, "of numbers to predict, where known; None: of the training examples")
    deviation: float | None = setting(None, "standard deviation of the same; None: of the training examples", above=0)
    owner: str | None = setting(
        AUTO,
        "name of the column that says whose row it is, for the natural partition; auto: a column called owner, client, "
        "site or hospital; None: none",
    )
    sep: str = setting(AUTO, "what separates the columns of a text file: ',', ';', tab, ...; auto: detected, reported")
    encoding: str = setting(AUTO, "of a text file: utf-8, latin-1, cp1252, utf-16, ...; auto: detected, and reported")
    decimal: str = setting(
        AUTO, "decimal sign of numeric labels; auto: a comma if they have no other reading", choices=DECIMALS
    )
    incomplete: str = setting(
        REFUSE,
        "rows without a text, an answer, a label or an owner, of training, validation and test alike; drop: they are "
        "left out and reported",
        choices=INCOMPLETE,
    )
    messages: str | None = setting(
        None, "name of the column with conversations, for instruction data; messages where there is no text column"
    )
    template: str | None = setting(
        None,
        "instruction data: alpaca, chat (the model's own) or FILE.jinja, a template of columns or messages",
        path=True,
        check=check_template,
    )
    answer: str = setting("output", "name of the column with the answers, where a template writes the prompts")
    target: str | None = setting(
        None, "name of the column with the texts that a decoder is to write (T5, BART); `text` is what is read"
    )
    beta: float = setting(
        0.1, "preferences: how much it costs to leave the base's answers (DPO)", above=0.0, high=100.0
    )
    validation: str | None = setting(
        None, "a file of validation examples with the same columns; None: that of the folder, or held out", path=True
    )
    test: str | None = setting(
        None,
        "a file of test examples with the same columns; None: that of the folder, or hold some of `path` out",
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

    def __post_init__(self) -> None:
        self._get_format()  # or the settings of its format are none

    @property
    def suited_head(self) -> str | None:
        """How the head starts on these rows: at zero if words are labeled; None: no special way."""
        try:
            splits = self._find_splits()
            pictures = has_pictures(splits.train)
            _, first = next(self._read_records(splits.train, pictures), ("", {}))
        except FedpeftError:  # which loading reports
            return None
        return "zero" if not pictures and choose_tag_reading(first, self.text, self.label, self.text) else None

    def load(self) -> Dataset:
        """The rows, checked.

        Raises:
            ConfigError: the file's ending does not say how to read it, or a library is missing that reads it.
            DataError: it can't be read, or its rows can't be used; the message names the line.
        """
        splits = self._find_splits()
        pictures = has_pictures(splits.train)
        _, first = next(self._read_records(splits.train, pictures), ("", {}))
        instructions = (
            None
            if pictures
            else choose_tag_reading(first, self.text, self.label, self.text)
            or choose_reading(first, self.text, self.messages, self.template, self.answer, self.beta, self.target)
        )
        names = user_rows.Names(
            FILE_NAME if pictures else self.text,
            None if instructions else self.label,
            self._find_owner(first, splits, instructions),
            f"file(path={self.path!r}, ROLE=COLUMN)",
            self.label_type,
            self.incomplete,
            self._get_format(),
            self.owner == AUTO,
        )
        train, validation, test = (
            None if path is None else self._read_table(path, pictures, instructions, names)
            for path in (splits.train, splits.validation, splits.test)
        )
        assert train is not None
        known = user_rows.KnownLabels.from_settings(self.mean, self.deviation, self.labels)
        made = self._build_dataset(train, validation, test, known, instructions)
        made = dataclasses.replace(made, notes=(*made.notes, *self._list_notes(splits, instructions, names)))
        if instructions and instructions.task != TOKEN_LABELS:
            model = NO_MODEL if instructions.task == "seq2seq" else made.default_model
            task, template = instructions.task, instructions.template
            return dataclasses.replace(made, task=task, template=template, default_model=model)
        return user_rows.build_picture_dataset(made, lambda files: read_pixels(files, self.side)) if pictures else made

    def _build_dataset(
        self,
        train: user_rows.Table,
        validation: user_rows.Table | None,
        test: user_rows.Table | None,
        known: user_rows.KnownLabels,
        instructions: ColumnReading | None,
    ) -> Dataset:
        name, column = Path(self.path).expanduser().name, self.label or "label"
        if instructions is None or instructions.task != TOKEN_LABELS:
            return user_rows.build_dataset(name, train, test, self.test_fraction, self.seed, validation, known, column)
        tables = [train, *(table for table in (validation, test) if table is not None)]
        texts, labels = convert_tags([table.texts for table in tables], name, known.names, "occur in training rows")
        train, *others = (dataclasses.replace(t, texts=own) for t, own in zip(tables, texts, strict=True))
        validation = None if validation is None else others.pop(0)
        test = None if test is None else others.pop(0)
        known = dataclasses.replace(known, names=None)
        made = user_rows.build_dataset(name, train, test, self.test_fraction, self.seed, validation, known, column)
        return dataclasses.replace(
            made,
            task=TOKEN_LABELS,
            label_names=labels,
            default_model="minilm",
            labels_of_rows=self.labels is None,
        )

    def _get_format(self) -> TableFormat:
        return TableFormat(self.sep, self.encoding, self.decimal, f"file(path={self.path!r}, NAME=VALUE)")

    def _find_owner(self, first: dict[str, Any], splits: Splits, instructions: ColumnReading | None) -> str | None:
        """Return the column of owners: the user's, or that of files by client, or one that is called so.

        Raises:
            DataError: several columns are called so.
        """
        if self.owner != AUTO:
            return self.owner
        if OWNER in first and splits.train.is_dir():
            return OWNER
        columns = (self.text, self.label, self.target, self.answer, self.messages, FILE_NAME)
        columns = (*columns, *(instructions.needs.values() if instructions else ()))
        used = [name for column in columns if column is not None for name in (column, *column.split(AND))]
        return find_owner(first, used, str(splits.train))

    def _read_records(self, path: Path, pictures: bool) -> Iterator[tuple[str, dict[str, Any]]]:
        return (
            read_picture_records(path, self._get_format()) if pictures else read_records_below(path, self._get_format())
        )

    def _read_table(
        self, path: Path, pictures: bool, instructions: ColumnReading | None, names: user_rows.Names
    ) -> user_rows.Table:
        """One split's rows."""
        if pictures and not has_pictures(path):
            raise ConfigError(
                f"FP1091 {path} holds no pictures, and the training rows are pictures; give a folder of the same kind"
            )
        if self.owner == AUTO and names.owner is not None:  # test rows may belong to nobody
            _, first = next(self._read_records(path, pictures), ("", {}))
            names = names if names.owner in first else dataclasses.replace(names, owner=None)
        found = self._read_records(path, pictures)
        if not instructions:
            return user_rows.read(str(path), found, names)
        owner = {} if names.owner is None else {"owner": names.owner}
        complete = names.complete(found, str(path), {**instructions.needs, **owner})
        table = user_rows.read(str(path), instructions.packed(complete, str(path)), names)
        return dataclasses.replace(table, left_out=complete.note)

    def _find_splits(self) -> Splits:
        """Where the rows are, the settings before what is found."""
        found = find_splits(Path(self.path).expanduser())
        given = {
            name: Path(path).expanduser()
            for name in ("validation", "test")
            if (path := getattr(self, name)) is not None
        }
        return dataclasses.replace(found, **given)

    def _list_notes(
        self, splits: Splits, instructions: ColumnReading | None, names: user_rows.Names
    ) -> tuple[str, ...]:
        """What was taken by itself, in one line each."""
        notes = [
            note
            for path in (splits.train, splits.validation, splits.test)
            if path is not None
            for note in format_notes(path, names.form)
        ]
        if instructions and not (self.messages or self.template or self.target):
            notes.append(f"taken as {instructions.said}")
        if splits.train != Path(self.path).expanduser():
            parts = [path.name for path in (splits.train, splits.validation, splits.test) if path is not None]
            notes.append(f"rows of {', '.join(parts)} in {self.path}")
        if self.owner == AUTO and names.owner not in (None, OWNER):
            notes.append(
                f"clients from column {names.owner!r} (owner=None: from none): --partition natural --clients 0 makes a "
                "client of each owner"
            )
        if self.owner == AUTO and names.owner == OWNER:
            notes.append("each file is a client's: --partition natural --clients 0 gives each client its own")
        return tuple(notes)


part = File

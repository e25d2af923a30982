"""Your own examples: `file:PATH`, or `file(path="PATH", text="body", label="topic")`.

PATH is one of these:

- a file of named columns: CSV, TSV, JSON lines, JSON, Parquet or Arrow, plain or .gz;
- a CoNLL file;
- a .txt file, whose lines become the column text;
- a folder that `save_to_disk` of the `datasets` library wrote, with or without splits;
- a folder with files train, validation and test, or with one file per client;
- a folder of images, in a folder for each class or with a metadata.csv of file_name and label;
- clips, with frames=N: a folder for each class, and in it a folder of frames for each clip;
- images with texts or masks, for the tasks towers, captions and patch_labels: a folder with a.jpg and a.txt (or
  a.mask.png), or a table with the columns image and text (or mask).

The first line of a CSV or TSV file names the columns. Parquet, Arrow and saved datasets need the extra `hub`.

The columns decide the task:

- `text="premise + hypothesis"` joins two columns, each after its name, as T5 writes pairs (Raffel et al., 2020,
  appendix D).
- Labels that are numbers with fractions are predicted (regression). Their unit is the mean and deviation of the
  training examples, or the given ones.
- Lists of labels, or columns of 0 and 1 (`label="toxic + insult"`), are several labels per example. Other labels are
  classes.
- Without a column named as `text`, these columns are instruction data: messages, conversations (ShareGPT),
  instruction and output (alpaca), prompt and completion. The model's chat template or `template` formats them, and
  the loss counts the answers only.
- A prompt with a chosen and a rejected answer is a preference, learned by DPO.
- Columns input and target, or those that `text` and `target` name, are pairs for an encoder with a decoder:
  `file(path="FILE", text=article, target=summary)`.
- Words with tags are token labels: `file(path="FILE", text=tokens, label=ner_tags)`.

Separator, encoding and decimal comma of a table are detected and reported. So is a column called owner, client, site or
hospital. Without test examples, a seeded share of each class is held out. The data and their license are yours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedpeft.data import image_companions, user_rows
from fedpeft.data.client_rows import MOST_FRAMES
from fedpeft.data.clip_folders import read_clip_records, read_clips
from fedpeft.data.image_folders import FILE_NAME, has_pictures, read_picture_records, read_pixels
from fedpeft.data.images_with_texts import choose_start
from fedpeft.data.incomplete_rows import INCOMPLETE, REFUSE
from fedpeft.data.instruction_columns import ColumnReading, choose_reading
from fedpeft.data.label_columns import AND, KINDS, parse_names
from fedpeft.data.owner_columns import find_owner
from fedpeft.data.prompt_templates import check_template
from fedpeft.data.record_files import RecordTable
from fedpeft.data.record_folders import OWNER, Splits, find_splits, format_notes, read_records_below
from fedpeft.data.rows import NO_MODEL, Dataset
from fedpeft.data.table_format import AUTO, DECIMALS, TableFormat
from fedpeft.data.tagged_records import TASK as TOKEN_LABELS
from fedpeft.data.tagged_records import choose_tag_reading, convert_tags
from fedpeft.errors import ConfigError, FedpeftError
from fedpeft.parts import setting
from fedpeft.parts.families import TASKS


@dataclass(frozen=True)
class File:
    """Examples from a file or folder of your own."""

    argument: ClassVar[str] = "path"

    path: str = setting(
        dataclasses.MISSING, "the file (.csv, .tsv, .jsonl, .json, .txt, .parquet, .arrow, or .gz) or folder", path=True
    )
    text: str = setting("text", "name of the column with the texts; for two columns 'premise + hypothesis'")
    label: str | None = setting(
        "label", "name of the column with classes, numbers or lists of labels, or 'toxic + insult'; None: language"
    )
    label_type: str = setting(
        "auto", "type of the labels; auto: detected from their values and reported", choices=KINDS
    )
    labels: str | None = setting(
        None, "names of classes or labels in order: a,b,c; None: those that occur in the training examples"
    )
    mean: float | None = setting(None, "mean of the numbers to predict; None: that of the training examples")
    deviation: float | None = setting(
        None, "standard deviation of the numbers to predict; None: that of the training examples", above=0
    )
    owner: str | None = setting(
        AUTO,
        "name of the column of owners, for the natural partition; auto: a column called owner, client, site or "
        "hospital; None: no owners",
    )
    sep: str = setting(AUTO, "separator of a text file's columns: ',', ';', tab, ...; auto: detected and reported")
    encoding: str = setting(
        AUTO, "encoding of a text file: utf-8, latin-1, cp1252, utf-16, ...; auto: detected and reported"
    )
    decimal: str = setting(
        AUTO, "decimal sign of numeric labels; auto: a comma if they have no other reading", choices=DECIMALS
    )
    incomplete: str = setting(
        REFUSE,
        "rows of any split without a text, an answer, a label or an owner; drop: leave them out and report their "
        "number",
        choices=INCOMPLETE,
    )
    messages: str | None = setting(
        None, "name of the column with conversations; by default messages, if there is no text column"
    )
    template: str | None = setting(
        None,
        "template of instruction data: alpaca, chat (the model's own) or FILE.jinja for columns or messages",
        path=True,
        check=check_template,
    )
    answer: str = setting("output", "name of the column with the answers if a template writes the prompts")
    target: str | None = setting(
        None, "name of the column with the texts that a decoder writes (T5, BART); it reads the column `text`"
    )
    beta: float = setting(
        0.1, "preferences: strength of the penalty for leaving the base model's answers (DPO)", above=0.0, high=100.0
    )
    validation: str | None = setting(
        None, "a file of validation examples with the same columns; None: the folder's, or held out", path=True
    )
    test: str | None = setting(
        None,
        "a file of test examples with the same columns; None: the folder's, or held out of `path`",
        path=True,
    )
    test_fraction: float = setting(
        0.2, "share of the examples held out for test if there is no test set", above=0.0, high=0.9
    )
    side: int = setting(
        64,
        "pixels per side that images are scaled to; the model sees 4 x 4 patches up to 64 pixels, and above as many "
        "whole patches as fit",
        low=8,
        high=512,
    )
    seed: int = setting(0, "seed of the held-out share; not the run's seed", low=0)
    frames: int = setting(
        0,
        "frames of each clip, evenly spaced, from a folder of frames for each clip; 0: examples are images or texts",
        low=0,
        high=MOST_FRAMES,
    )
    task: str | None = setting(
        None,
        "for images with texts or masks: towers, captions or patch_labels, with its settings; None: the columns decide",
        nested=TASKS,
    )

    task_in_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the settings of the text format."""
        self._get_format()  # raises if its settings are not legal
        if self.task is not None:
            image_companions.find_companion(self.task)
        if self.frames and self.task is not None:
            raise ConfigError(
                f"FP1737 frames={self.frames} reads clips with classes, and {self.task} is for images; leave one out"
            )

    def list_files(self) -> tuple[str, ...]:
        """Return the paths of the files or folders that the examples are read from."""
        return tuple(str(path) for path in (self.path, self.validation, self.test) if path is not None)

    def count_frames(self) -> int:
        """Return the number of frames of each clip; 0: the examples are images or texts."""
        return self.frames

    @property
    def suited_head(self) -> str | None:
        """Start of the head: zero for token labels; None leaves the choice to the run."""
        if self.task is not None:
            return choose_start(self.task)
        try:
            splits = self._find_splits()
            pictures = self.frames > 0 or has_pictures(splits.train)
            reading = None if pictures else self.choose_reading(self._create_table(splits.train, pictures).first)
        except FedpeftError:  # `load` reports it
            return None
        return "zero" if reading is not None and reading.task == TOKEN_LABELS else None

    def load(self) -> Dataset:
        """Return the examples, checked.

        Raises:
            ConfigError: the file's ending is unknown, or the library that reads it is missing.
            DataError: it can't be read, or its rows can't be used; the message names the line.
        """
        paths = self._find_splits()
        pictures = self.task is None and (self.frames > 0 or has_pictures(paths.train))
        for path in (paths.validation, paths.test):
            if pictures and path is not None and not (self.frames or has_pictures(path)):
                raise ConfigError(
                    f"FP1091 {path} contains no images, but the training examples are images; give a folder of images"
                )
        made = self.build_dataset(
            Path(self.path).expanduser().name,
            paths.convert(lambda path: self._create_table(path, pictures)),
            f'"file(path={self.path!r}, ROLE=COLUMN)"',
            self._read_images if pictures else None,
        )
        return dataclasses.replace(made, notes=(*self._list_notes(paths), *made.notes))

    def _read_images(self, files: list[str]) -> NDArray[np.uint8]:
        """Return the images of files, or the clips of folders."""
        return read_clips(files, self.side, self.frames) if self.frames else read_pixels(files, self.side)

    def choose_reading(self, first: Mapping[str, Any]) -> ColumnReading | None:
        """Return how to read data that start with the record `first`; None: each row has a text, and perhaps a label.

        Raises:
            ConfigError: settings contradict each other.
        """
        if self.task is not None:
            return image_companions.choose_reading(self.task, self._companion_column, self.text)
        return choose_tag_reading(first, self.text, self.label, self.text) or choose_reading(
            first, self.text, self.messages, self.template, self.answer, self.beta, self.target
        )

    def build_dataset(
        self, name: str, splits: Splits[RecordTable], ask: str, pixels: Callable[[list[str]], Any] | None = None
    ) -> Dataset:
        """Return the dataset of records, wherever they come from; `path` plays no role.

        Args:
            name: name of the dataset.
            splits: the records of each split; those of images name them in the column `FILE_NAME`.
            ask: how a user names a column, see `fedpeft.data.user_rows.Names`.
            pixels: returns the named images, uint8 (images, side, side, 3), or clips; None: the examples are texts.

        Raises:
            ConfigError: settings contradict each other.
            DataError: the rows can't be used; the message names the row.
        """
        first = splits.train.first
        reading = self.choose_reading(first) if pixels is None else None
        settable = user_rows.SETTING in ask  # records in Python have no settings that a message could name
        names = user_rows.Names(
            self.text if pixels is None else FILE_NAME,
            None if reading else self.label,
            self._find_owner(first, splits.train, reading, ask),
            ask,
            self.label_type,
            self.incomplete if settable else "",
            self._get_format(),
            settable and self.owner == AUTO,
        )
        tables = splits.convert(lambda table: self._read_table(table, reading, names))
        known = user_rows.KnownLabels.from_settings(self.mean, self.deviation, self.labels)
        made = self._build_dataset(name, tables, known, reading)
        made = dataclasses.replace(made, notes=(*made.notes, *self._list_choices(splits.train, reading, names)))
        if reading and self.task is not None:
            return image_companions.build_companion_dataset(made, self.task, self.side, self._label_names)
        if reading and reading.task != TOKEN_LABELS:
            model = NO_MODEL if reading.task == "seq2seq" else made.default_model
            return dataclasses.replace(made, task=reading.task, template=reading.template, default_model=model)
        return made if pixels is None else user_rows.build_picture_dataset(made, pixels)

    def _build_dataset(
        self,
        name: str,
        splits: Splits[user_rows.Table],
        known: user_rows.KnownLabels,
        reading: ColumnReading | None,
    ) -> Dataset:
        fraction, column = self.test_fraction, self.label or "label"

        def build(splits: Splits[user_rows.Table], known: user_rows.KnownLabels) -> Dataset:
            train, validation, test = splits.train, splits.validation, splits.test
            return user_rows.build_dataset(name, train, test, fraction, self.seed, validation, known, column)

        if self.task is not None:  # labels name those of masks, and texts have none
            return build(splits, dataclasses.replace(known, names=None))
        if reading is None or reading.task != TOKEN_LABELS:
            return build(splits, known)
        tables = [table for table in (splits.train, splits.validation, splits.test) if table is not None]
        texts, labels = convert_tags([table.texts for table in tables], name, known.names, "occur in training examples")
        converted = iter(texts)
        splits = splits.convert(lambda table: dataclasses.replace(table, texts=next(converted)))
        return dataclasses.replace(
            build(splits, dataclasses.replace(known, names=None)),
            task=TOKEN_LABELS,
            label_names=labels,
            default_model="minilm",
            labels_of_rows=self.labels is None,
        )

    @property
    def _companion_column(self) -> str:
        """Column of the texts or masks beside images."""
        assert self.task is not None
        companion = image_companions.find_companion(self.task)
        return image_companions.get_column(companion, self.text, self.label, "label")

    @property
    def _label_names(self) -> tuple[str, ...] | None:
        return None if self.labels is None else parse_names(self.labels, least=2)

    def _get_format(self) -> TableFormat:
        return TableFormat(self.sep, self.encoding, self.decimal, f'"file(path={self.path!r}, NAME=VALUE)"')

    def _find_owner(
        self, first: dict[str, Any], train: RecordTable, reading: ColumnReading | None, ask: str
    ) -> str | None:
        """Return the column of owners: the given one, that of one file per client, or one with a usual name.

        Raises:
            DataError: several columns are called so.
        """
        if self.owner != AUTO:
            return self.owner
        if train.owner in first:
            return train.owner
        columns = (self.text, self.label, self.target, self.answer, self.messages, FILE_NAME)
        columns = (*columns, *(reading.needs.values() if reading else ()))
        used = [name for column in columns if column is not None for name in (column, *column.split(AND))]
        return find_owner(first, used, train.name, is_setting=user_rows.SETTING in ask)

    def _create_table(self, path: Path, pictures: bool) -> RecordTable:
        if self.task is not None:
            companion, form = image_companions.find_companion(self.task), self._get_format()
            records = partial(image_companions.read_companion_records, path, companion, self._companion_column, form)
            return RecordTable(str(path), records)
        if self.frames:
            return RecordTable(str(path), partial(read_clip_records, path))
        read = partial(read_picture_records if pictures else read_records_below, path, self._get_format())
        return RecordTable(str(path), read, OWNER if path.is_dir() else None)

    def _read_table(self, table: RecordTable, reading: ColumnReading | None, names: user_rows.Names) -> user_rows.Table:
        """Return the checked columns of one split."""
        if self.owner == AUTO and names.owner is not None and names.owner not in table.first:
            names = dataclasses.replace(names, owner=None)  # test examples may have no owner
        if not reading:
            return user_rows.read(table.name, table.read(), names)
        owner = {} if names.owner is None else {"owner": names.owner}
        complete = names.complete(table.read(), table.name, {**reading.needs, **owner})
        made = user_rows.read(table.name, reading.packed(complete, table.name), names)
        return dataclasses.replace(made, left_out=complete.note)

    def _find_splits(self) -> Splits[Path]:
        """Return the paths of the splits; the settings take precedence over what the folder contains."""
        found = find_splits(Path(self.path).expanduser())
        given = {
            name: Path(path).expanduser()
            for name in ("validation", "test")
            if (path := getattr(self, name)) is not None
        }
        return dataclasses.replace(found, **given)

    def _list_notes(self, splits: Splits[Path]) -> tuple[str, ...]:
        """Return one line for each unusual format, and for splits that were found in a folder."""
        paths = [path for path in (splits.train, splits.validation, splits.test) if path is not None]
        notes = [note for path in paths for note in format_notes(path, self._get_format())]
        if splits.train != Path(self.path).expanduser():
            notes.append(f"rows of {', '.join(path.name for path in paths)} in {self.path}")
        return tuple(notes)

    def _list_choices(
        self, train: RecordTable, reading: ColumnReading | None, names: user_rows.Names
    ) -> tuple[str, ...]:
        """Return one line for each choice of columns that was made automatically."""
        notes = []
        if reading and not (self.messages or self.template or self.target):
            notes.append(f"taken as {reading.said}")
        if self.owner == AUTO and names.owner is not None:
            column, effect = f"clients from column {names.owner!r}", "makes a client of each owner"
            if names.owner == train.owner:
                notes.append("each file is a client's: --partition natural --clients 0 gives each client its own")
            elif user_rows.SETTING in names.ask:
                notes.append(f"{column} (owner=None: from none): --partition natural --clients 0 {effect}")
            else:
                notes.append(f"{column}: partition='natural', clients=0 {effect}")
        return tuple(notes)


part = File

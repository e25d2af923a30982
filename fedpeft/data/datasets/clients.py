"""Rows that real clients have: `clients(labels='bad,good')`, or of pictures `clients(labels='cat,dog', side=64)`.

Of them a server knows the form alone: what is learned, what classes are called, which columns there are, how pictures
and conversations are brought to what a model reads. `python -m fedpeft.serve` makes it of its flags and writes it into
the run's settings; each client reads its own file or folder by it. Nothing is loaded. The data are the clients', and
so is their licence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.client_rows import LABEL, LARGEST, SMALLEST, TEXT
from fedpeft.data.image_folders import FILE_NAME, has_pictures, read_picture_records, read_pixels
from fedpeft.data.instruction_columns import choose_reading
from fedpeft.data.label_columns import AND, parse_names
from fedpeft.data.prompt_templates import check_template
from fedpeft.data.record_files import Record, get_suffix
from fedpeft.data.record_folders import format_notes, read_records_below
from fedpeft.data.rows import NO_MODEL, Dataset, Kind, Rows
from fedpeft.data.table_format import DETECT, TableFormat
from fedpeft.data.tagged_records import TASK as TOKEN_LABELS
from fedpeft.data.tagged_records import choose_tag_reading, convert_tags
from fedpeft.data.text_to_text import INPUT, TARGET, read_pair_rows
from fedpeft.data.user_rows import Names, build_labeled_rows, read
from fedpeft.errors import ConfigError, DataError
from fedpeft.parts import setting
from fedpeft.spec import parse_spec

ANSWER = "output"
"""Column of the answers, where a template writes the prompts."""

PACKED = "packed by fedpeft"
"""Where the packed text of a conversation goes, beside columns that may be called anything."""

CONVERSATIONS = ("instruction", "dpo")
"""Tasks whose rows are conversations, or prompts with answers."""

LANGUAGE = ("causal_lm", *CONVERSATIONS)
"""Tasks of language models."""


@dataclass(frozen=True)
class Clients:
    """The form of the rows of real clients."""

    task: str = setting(
        "classification",
        "what is learned: classification, multi_label, 'regression(mean=50, deviation=10)', causal_lm, instruction, "
        "dpo, seq2seq or token_labels",
    )
    labels: str | None = setting(None, "names of classes or labels in order: a,b,c")
    text: str = setting(TEXT, "column of texts; of conversations those of their usual names")
    label: str = setting(LABEL, "column of classes, numbers or labels, or of what answers the texts")
    side: int = setting(0, "pixels per side that pictures are brought to; 0: rows are texts", low=0, high=LARGEST)
    template: str | None = setting(
        None,
        "of conversations: chat (the model's own), alpaca, flowertune or FILE.jinja; None: chat",
        path=True,
        check=check_template,
    )

    def __post_init__(self) -> None:
        if self.side and self.learns in (*LANGUAGE, "seq2seq", TOKEN_LABELS):
            raise ConfigError(
                f"FP1086 side={self.side} is of pictures, and {self.learns} is learned of texts; leave one out"
            )
        if 0 < self.side < SMALLEST:
            raise ConfigError(f"FP1087 side={self.side} is less than {SMALLEST} pixels, of which nothing can be seen")
        if self.template is not None:
            check_template(self.template)
        if self.template is not None and self.learns not in CONVERSATIONS:
            raise ConfigError(
                f"FP1088 template={self.template!r} writes conversations, and the task is {self.learns}; name one of "
                "these, instruction or dpo, or leave the template out"
            )
        if self.learns == "dpo" and (self.text, self.label) != (TEXT, LABEL):
            raise ConfigError("FP1089 preferences stand in columns called prompt, chosen and rejected; name no others")

    @property
    def learns(self) -> str:
        """The task's name."""
        return parse_spec(self.task).name

    @property
    def kind(self) -> Kind:
        """What rows are."""
        return "image" if self.side else "text"

    @property
    def names(self) -> tuple[str, ...] | None:
        """Of classes or labels, as they are given, or as the columns of numbers, and of 0 and 1, are called."""
        if self.learns == "regression":
            return (self.label,)
        if self.labels is None and self.learns == "multi_label" and AND in self.label:
            return tuple(self.label.split(AND))
        return None if self.labels is None else parse_names(self.labels, least=1)

    @property
    def default_model(self) -> str:
        """The model that suits such rows."""
        if self.side:
            return "dinov2_small"
        return "smollm2" if self.learns in LANGUAGE else NO_MODEL if self.learns == "seq2seq" else "minilm"

    @property
    def suited_head(self) -> str | None:
        """How the head starts: at zero if words are labeled; None: no special way."""
        return "zero" if self.learns == TOKEN_LABELS else None

    @property
    def columns(self) -> tuple[str, str]:
        """Of texts and labels, as clients are told; of pairs those of what is read and of what is written."""
        given = (self.text, self.label)
        return (INPUT, TARGET) if self.learns == "seq2seq" and given == (TEXT, LABEL) else given

    def load(self) -> Dataset:
        """Refused: nobody else has these rows.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "FP1090 clients(...) are rows that real clients have, and nobody else; a simulation takes rows of your "
            "own by --dataset file:PATH, and a finished run answers them by python -m fedpeft.predict RUN --data FILE"
        )

    def read(
        self,
        path: Path,
        names: Sequence[str] | None,
        targets: str,
        given: TableFormat = DETECT,
        say: Callable[[str], object] = str,
    ) -> tuple[Rows, tuple[str, ...]]:
        """The rows of a client's file or folder, with labels as positions in names, and the names.

        Args:
            path: a file of records; of pictures a folder.
            names: of classes or labels, in order; None: those that occur, sorted.
            targets: what labels are, see `fedpeft.models.task.Task`.
            given: the format of text files.
            say: is told what was detected.

        Raises:
            ConfigError, DataError: it can't be read, or its rows are of another form.
        """
        for note in format_notes(path, given):
            say(note)
        if self.learns == "seq2seq":
            return read_pair_rows(str(path), *self.columns, given), ()
        if self.learns in CONVERSATIONS:
            return self._read_conversations(path, given), ()
        if self.learns == TOKEN_LABELS:
            return self._read_words(path, names, given)
        label = None if self.learns == "causal_lm" else self.label
        column = FILE_NAME if self.side else self.text
        rows, known = build_labeled_rows(
            str(path), self._read_records(path, given), column, label, names, targets, given, say
        )
        return self._convert_to_pictures(rows) if self.side else rows, known

    def create_empty_rows(self, targets: str, names: Sequence[str] | None) -> Rows:
        """None of them."""
        labels: NDArray[Any] | None = None
        if targets == "labels":
            labels = np.zeros((0, len(names or ())), np.int8)
        elif targets:
            labels = np.zeros(0, np.float64 if targets == "numbers" else np.int64)
        return Rows(np.zeros((0, self.side, self.side, 3), np.uint8) if self.side else [], labels)

    def _read_records(self, path: Path, given: TableFormat) -> Iterator[Record]:
        """The records of a client's rows."""
        found = read_own_records(path, given)
        if not self.side and has_pictures(path):
            raise DataError(
                f"FP3024 {path} holds pictures, and the federation learns from texts; a server says --side 64 for "
                "pictures"
            )
        if self.side and not has_pictures(path):
            raise DataError(
                f"FP3025 {path} holds no pictures, and the federation learns from pictures; give a folder of them, in "
                "a folder for each class or with a metadata.csv of file_name and label"
            )
        return found

    def _convert_to_pictures(self, rows: Rows) -> Rows:
        return Rows(read_pixels(list(map(str, rows.inputs)), self.side), rows.labels)

    def _read_words(self, path: Path, names: Sequence[str] | None, given: TableFormat) -> tuple[Rows, tuple[str, ...]]:
        """Return rows of words and tags as positions among the names of labels, and these."""
        _, first = read_first_record(path, given)
        found = choose_tag_reading(first, self.text, self.label, PACKED)
        if found is None:
            raise DataError(
                f"FP3180 {path} holds no words with tags, which the federation learns from: a list of words in a "
                f"column tokens and one of as many tags in a column ner_tags; it has {', '.join(map(repr, first))}"
            )
        complete = Names(PACKED, None, None).complete(self._read_records(path, given), str(path), found.needs)
        texts = read(str(path), found.packed(complete, str(path)), Names(PACKED, None, None)).texts
        where = f"belong to the federation, whose labels are {', '.join(map(repr, (names or ())[:20]))}"
        (made,), known = convert_tags([texts], str(path), names, where)
        return Rows(made), known

    def _read_conversations(self, path: Path, given: TableFormat) -> Rows:
        """Packed conversations, see `fedpeft.data.conversations`, or preferences."""
        _, first = read_first_record(path, given)
        messages, answer = (None if self.text == TEXT else self.text), (ANSWER if self.label == LABEL else self.label)
        found = choose_reading(first, PACKED, messages, self.template or "chat", answer)
        if found is None or parse_spec(found.task).name != self.learns:
            wanted = {
                "instruction": "conversations: a column messages or conversations, or prompt and completion, or "
                "instruction and output",
                "dpo": "preferences: columns prompt, chosen and rejected",
            }[self.learns]
            raise DataError(f"FP3026 {path} holds other rows than the federation learns from, which are {wanted}")
        packed = found.packed(self._read_records(path, given), str(path))
        return Rows(read(str(path), packed, Names(PACKED, None, None)).texts)


def read_own_records(path: Path, given: TableFormat = DETECT) -> Iterator[Record]:
    """The rows in a file or a folder, each with its place; of pictures, their files. `given` is the format of texts.

    Raises:
        DataError: there is no such file or folder.
    """
    if not path.expanduser().exists():
        raise DataError(f"FP3027 there is no {'file' if get_suffix(path) else 'file or folder'} {path}")
    return read_picture_records(path, given) if has_pictures(path) else read_records_below(path, given)


def read_first_record(path: Path, given: TableFormat = DETECT) -> Record:
    """The first of the rows in a file or folder, and its place.

    Raises:
        ConfigError, DataError: there is none, or it can't be read.
    """
    first = next(read_own_records(path, given), None)
    if first is None:
        raise DataError(f"FP3028 {path} has no rows")
    return first


part = Clients

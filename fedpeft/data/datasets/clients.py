"""Examples that only real clients hold: `clients(labels='bad,good')`, for images `clients(labels='cat,dog', side=64)`.

The server knows only their form: the task, the names of classes, the columns, and how images and conversations are
prepared. `fedpeft serve` builds this form from its flags and writes it into the run's settings. Each client
reads its own file or folder accordingly. Nothing is loaded here. The data and their license are the clients' own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.client_rows import LABEL, LARGEST, MOST_FRAMES, MOST_PIXELS, SMALLEST, TEXT
from fedpeft.data.clip_folders import has_clips, read_clip_records, read_clips
from fedpeft.data.image_companions import (
    MASK,
    find_companion_beside,
    get_column,
    read_companion_records,
    unpack_rows,
)
from fedpeft.data.image_companions import TASKS as COMPANIONS
from fedpeft.data.image_companions import choose_reading as choose_companion_reading
from fedpeft.data.image_folders import FILE_NAME, has_pictures, read_picture_records, read_pixels
from fedpeft.data.images_with_texts import choose_model, choose_start
from fedpeft.data.instruction_columns import choose_reading
from fedpeft.data.label_columns import AND, parse_names
from fedpeft.data.masks import check_masks, list_labels
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
from fedpeft.parts.spec import parse_spec

ANSWER = "output"
"""Default column of the answers if a template writes the prompts."""

PACKED = "packed by fedpeft"
"""Column for the packed text of a conversation; no user's column has this name."""

CONVERSATIONS = ("instruction", "dpo")
"""Tasks whose examples are conversations, or prompts with answers."""

LANGUAGE = ("causal_lm", *CONVERSATIONS)
"""Tasks of language models."""


@dataclass(frozen=True)
class Clients:
    """Form of the examples that real clients hold."""

    held_by_clients: ClassVar[bool] = True

    task: str = setting(
        "classification",
        "task: classification, multi_label, 'regression(mean=50, deviation=10)', causal_lm, instruction, "
        "dpo, seq2seq or token_labels, and for images also towers, captions or patch_labels",
    )
    labels: str | None = setting(None, "names of classes or labels in order: a,b,c")
    text: str = setting(TEXT, "column of texts; for conversations, None of the usual names")
    label: str = setting(LABEL, "column of classes, numbers or labels, or of the answers to the texts")
    side: int = setting(0, "pixels per side that images are scaled to; 0: examples are texts", low=0, high=LARGEST)
    frames: int = setting(
        0,
        "frames of each clip, from a folder of frames for each; 0: examples are images or texts",
        low=0,
        high=MOST_FRAMES,
    )
    template: str | None = setting(
        None,
        "template of conversations: chat (the model's own), alpaca, flowertune or FILE.jinja; None: chat",
        path=True,
        check=check_template,
    )

    def __post_init__(self) -> None:
        """Check that the settings fit together."""
        if self.side and self.learns in (*LANGUAGE, "seq2seq", TOKEN_LABELS):
            raise ConfigError(
                f"FP1086 side={self.side} is for images, but the task {self.learns} needs texts; leave one of them out"
            )
        if self.learns in COMPANIONS and not self.side:
            raise ConfigError(
                f"FP1732 the task {self.learns} needs images, and side is 0; give their size in pixels, such as side=64"
            )
        if self.frames and (not self.side or self.learns in COMPANIONS):
            raise ConfigError(
                f"FP1738 frames={self.frames} reads clips with classes, labels or numbers, and needs the size of a "
                f"frame in pixels, such as side=64; the task is {self.learns}, and side is {self.side}"
            )
        if 0 < self.side < SMALLEST:
            raise ConfigError(
                f"FP1087 side={self.side} is too small to show anything; give {SMALLEST} to {LARGEST} pixels"
            )
        if (pixels := self.frames * self.side**2) > MOST_PIXELS:
            raise ConfigError(
                f"FP1981 frames={self.frames} and side={self.side} make {pixels:,} pixels per example, and clients "
                f"accept {MOST_PIXELS:,} at most; read fewer frames, or scale them to fewer pixels"
            )
        if self.template is not None:
            check_template(self.template)
        if self.template is not None and self.learns not in CONVERSATIONS:
            raise ConfigError(
                f"FP1088 template={self.template!r} formats conversations, but the task is {self.learns}; choose "
                "the task instruction or dpo, or leave the template out"
            )
        if self.learns == "dpo" and (self.text, self.label) != (TEXT, LABEL):
            raise ConfigError(
                "FP1089 preferences must be in the columns prompt, chosen and rejected; leave out text and label"
            )

    def count_frames(self) -> int:
        """Return the number of frames of each clip; 0: the examples are images or texts."""
        return self.frames

    @property
    def learns(self) -> str:
        """The task's name."""
        return parse_spec(self.task).name

    @property
    def kind(self) -> Kind:
        """Input type: clip, image or text."""
        if self.frames:
            return "clip"
        return "image" if self.side else "text"

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names of the classes or labels, or of the label columns; None if clients' files decide."""
        if self.learns == "regression":
            return (self.label,)
        if self.labels is None and self.learns == "multi_label" and AND in self.label:
            return tuple(self.label.split(AND))
        return None if self.labels is None else parse_names(self.labels, least=1)

    @property
    def default_model(self) -> str:
        """Name of the default base model for this task."""
        if self.learns in COMPANIONS:
            return choose_model(self.task)
        if self.side:
            return "dinov2_small"
        if self.learns in LANGUAGE:
            return "smollm2"
        return NO_MODEL if self.learns == "seq2seq" else "minilm"

    @property
    def suited_head(self) -> str | None:
        """Start of the head: zero for token labels; None leaves the choice to the run."""
        if self.learns in COMPANIONS:
            return choose_start(self.task)
        return "zero" if self.learns == TOKEN_LABELS else None

    @property
    def columns(self) -> tuple[str, str]:
        """Columns of texts and labels in clients' files; for pairs, those of the source and target texts."""
        given = (self.text, self.label)
        return (INPUT, TARGET) if self.learns == "seq2seq" and given == (TEXT, LABEL) else given

    def load(self) -> Dataset:
        """Raise ConfigError, because only the clients hold these examples.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "FP1090 only real clients hold the examples of clients(...); for your own, simulate with --dataset "
            "file:PATH, or apply a finished run with fedpeft predict RUN --data FILE"
        )

    def read(
        self,
        path: Path,
        names: Sequence[str] | None,
        targets: str,
        given: TableFormat = DETECT,
        say: Callable[[str], object] = str,
    ) -> tuple[Rows, tuple[str, ...]]:
        """Return the examples of a client's file or folder, and the names of the classes.

        Labels are positions in these names.

        Args:
            path: a file of records; for images a folder.
            names: names of classes or labels, in order; None: those that occur, sorted.
            targets: what labels are, see `fedpeft.models.task.Task`.
            given: the format of text files.
            say: called with each line about a detected format.

        Raises:
            ConfigError, DataError: the file can't be read, or its examples have another form.
        """
        for note in format_notes(path, given):
            say(note)
        if self.learns == "seq2seq":
            return read_pair_rows(str(path), *self.columns, given), ()
        if self.learns in CONVERSATIONS:
            return self._read_conversations(path, given), ()
        if self.learns == TOKEN_LABELS:
            return self._read_words(path, names, given)
        if self.learns in COMPANIONS:
            return self._read_companions(path, names, given)
        label = None if self.learns == "causal_lm" else self.label
        column = FILE_NAME if self.side else self.text
        rows, known = build_labeled_rows(
            str(path), self._read_records(path, given), column, label, names, targets, given, say
        )
        return self._convert_to_pictures(rows) if self.side else rows, known

    def create_empty_rows(self, targets: str, names: Sequence[str] | None) -> Rows:
        """Return `Rows` of this form without any example."""
        labels: NDArray[Any] | None = None
        if targets == "labels":
            labels = np.zeros((0, len(names or ())), np.int8)
        elif targets:
            labels = np.zeros(0, np.float64 if targets == "numbers" else np.int64)
        if not self.side:
            return Rows([], labels)
        masked = COMPANIONS.get(self.learns) is MASK
        shape = (self.frames, self.side, self.side, 3) if self.frames else (self.side, self.side, 3)
        return Rows(
            np.zeros((0, *shape), np.uint8),
            labels,
            texts=[] if self.learns in COMPANIONS and not masked else None,
            masks=np.zeros((0, self.side, self.side), np.uint8) if masked else None,
        )

    def _read_records(self, path: Path, given: TableFormat) -> Iterator[Record]:
        """Yield a client's records, after a check that they are images or texts as the run requires."""
        if self.frames:
            return read_clip_records(path.expanduser())
        found = read_own_records(path, given)
        if not self.side and has_pictures(path):
            raise DataError(
                f"FP3024 {path} contains images, but the federation learns from texts; a server sets --side 64 for "
                "images"
            )
        if self.side and not has_pictures(path):
            raise DataError(
                f"FP3025 {path} contains no images, but the federation learns from images; give a folder of them, in "
                "a folder for each class or with a metadata.csv of file_name and label"
            )
        return found

    def _convert_to_pictures(self, rows: Rows) -> Rows:
        files = list(map(str, rows.inputs))
        return Rows(
            read_clips(files, self.side, self.frames) if self.frames else read_pixels(files, self.side), rows.labels
        )

    def _read_companions(
        self, path: Path, names: Sequence[str] | None, given: TableFormat
    ) -> tuple[Rows, tuple[str, ...]]:
        """Return images with texts or masks, and the names of the labels of masks."""
        companion = COMPANIONS[self.learns]
        column = get_column(companion, self.text, self.label, LABEL)
        found = choose_companion_reading(self.task, column, PACKED)
        complete = Names(PACKED, None, None).complete(
            read_companion_records(path.expanduser(), companion, column, given), str(path), found.needs
        )
        packed = read(str(path), found.packed(complete, str(path)), Names(PACKED, None, None)).texts
        rows = unpack_rows(Rows(packed), companion, self.side)
        if rows.masks is None:
            return rows, ()
        known = tuple(names or list_labels(rows.masks, str(path)))
        check_masks(rows.inputs, rows.masks, known, str(path))
        return rows, known

    def _read_words(self, path: Path, names: Sequence[str] | None, given: TableFormat) -> tuple[Rows, tuple[str, ...]]:
        """Return examples of words with tags, as positions among the names of labels, and these names."""
        _, first = read_first_record(path, given)
        found = choose_tag_reading(first, self.text, self.label, PACKED)
        if found is None:
            raise DataError(
                f"FP3180 {path} contains no words with tags, which the federation learns from: a list of words in a "
                f"column tokens, and a list of as many tags in a column ner_tags; it has {', '.join(map(repr, first))}"
            )
        complete = Names(PACKED, None, None).complete(self._read_records(path, given), str(path), found.needs)
        texts = read(str(path), found.packed(complete, str(path)), Names(PACKED, None, None)).texts
        where = f"belong to the federation, whose labels are {', '.join(map(repr, (names or ())[:20]))}"
        (made,), known = convert_tags([texts], str(path), names, where)
        return Rows(made), known

    def _read_conversations(self, path: Path, given: TableFormat) -> Rows:
        """Return packed conversations (`fedpeft.data.conversations`) or preferences."""
        _, first = read_first_record(path, given)
        messages, answer = (None if self.text == TEXT else self.text), (ANSWER if self.label == LABEL else self.label)
        found = choose_reading(first, PACKED, messages, self.template or "chat", answer)
        if found is None or parse_spec(found.task).name != self.learns:
            wanted = {
                "instruction": "conversations: a column messages or conversations, or prompt and completion, or "
                "instruction and output",
                "dpo": "preferences: columns prompt, chosen and rejected",
            }[self.learns]
            raise DataError(f"FP3026 {path} does not contain what the federation learns from: {wanted}")
        packed = found.packed(self._read_records(path, given), str(path))
        return Rows(read(str(path), packed, Names(PACKED, None, None)).texts)


def read_own_records(path: Path, given: TableFormat = DETECT) -> Iterator[Record]:
    """Return the records of a file or folder with their places; for images, one record per file.

    `given` is the format of text files.

    Raises:
        DataError: the file or folder does not exist.
    """
    if not path.expanduser().exists():
        kind = "file" if get_suffix(path) else "file or folder"
        raise DataError(f"FP3027 there is no {kind} {path}; give the path of an existing one")
    return read_picture_records(path, given) if has_pictures(path) else read_records_below(path, given)


def read_first_example(path: Path, given: TableFormat = DETECT) -> Record:
    """Return the first record of a file or folder, whatever the federation learns, with its place.

    Raises:
        ConfigError, DataError: it has no records, or can't be read.
    """
    folder = path.expanduser()
    if has_clips(folder):
        return next(read_clip_records(folder))
    if (companion := find_companion_beside(folder)) is None:
        return read_first_record(path, given)
    return next(read_companion_records(folder, companion, companion.column, given))


def read_first_record(path: Path, given: TableFormat = DETECT) -> Record:
    """Return the first record of a file or folder, with its place.

    Raises:
        ConfigError, DataError: it has no records, or can't be read.
    """
    first = next(read_own_records(path, given), None)
    if first is None:
        raise DataError(f"FP3028 {path} has no rows")
    return first


part = Clients

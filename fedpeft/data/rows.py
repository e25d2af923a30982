"""Plain containers for data sets, and the fixed validation split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
from numpy.typing import NDArray

from fedpeft import plugins
from fedpeft.data.tagged_words import check_tags
from fedpeft.data.task_sequence import TaskSequence
from fedpeft.data.text_column import join_texts, take_texts
from fedpeft.errors import ConfigError, DataError
from fedpeft.families import DATASETS as DATASETS
from fedpeft.machine import growing_array
from fedpeft.spec import parse_spec

Kind = Literal["text", "image"]
Inputs = Sequence[str] | NDArray[np.generic]

VALIDATION_ROWS = 1000
"""Training rows that no client gets, for tuning and the curve per round; a tenth of the rows if there are fewer."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Examples, in a fixed order.

    Attributes:
        inputs: texts, one string a row, in a list or on disk (`fedpeft.data.text_column`); or images, uint8 (rows,
            height, width) or (rows, height, width, 3), 0 to 255.
        labels: int64 (rows,), 0 <= label < number of classes; float64 (rows,), numbers to predict; int8 (rows, labels),
            0 or 1, where a row has any of several; None for causal language modelling.
        owners: (rows,) of str or int, whose row it is in the real world; None where nothing is known.
        tasks: int64 (rows,), which of a sequence of tasks a row belongs to, from 0; None: there is one task.
        texts: of images, the text that goes with each; None: none does. An empty text, or an image of zeros, is one
            that the row's owner does not have.
    """

    inputs: Inputs
    labels: NDArray[Any] | None = None
    owners: NDArray[np.generic] | None = None
    tasks: NDArray[np.int64] | None = None
    texts: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.texts is not None and len(self.texts) != len(self.inputs):
            raise DataError(f"FP3131 {len(self.inputs)} inputs but {len(self.texts)} texts")
        for name, column in (("labels", self.labels), ("owners", self.owners), ("tasks", self.tasks)):
            if not isinstance(column, np.ndarray | None):
                raise DataError(
                    f"FP3132 {name} are a {type(column).__name__}, and must be a NumPy array; np.array makes one"
                )
            shape = None if column is None else column.shape[:1] if name == "labels" else column.shape
            if column is not None and shape != (len(self.inputs),):
                raise DataError(f"FP3133 {len(self.inputs)} inputs but {name} of shape {column.shape}")

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def targets(self) -> str:
        """What labels are: "classes", "numbers", "labels" (any of several a row), or "": there are none."""
        if self.labels is None:
            return ""
        return "labels" if self.labels.ndim != 1 else "numbers" if self.labels.dtype.kind == "f" else "classes"

    @property
    def classes(self) -> NDArray[np.int64] | None:
        """The rows' classes, (rows,); of numbers, which of `BINS` quantile bins each lies in; None: a row has none, or
        several labels."""
        if self.labels is None or self.targets == "labels":
            return None
        return assign_quantile_bins(self.labels) if self.targets == "numbers" else self.labels

    def take(self, indices: NDArray[np.integer]) -> Rows:
        """The rows at `indices` (int, any length), in that order; text is shared, arrays are copied."""
        if isinstance(self.inputs, np.ndarray):
            inputs: Inputs = self.inputs[indices]
        else:
            inputs = take_texts(self.inputs, indices)
        columns = (self.labels, self.owners, self.tasks)
        labels, owners, tasks = (None if column is None else _take_rows(column, indices) for column in columns)
        texts = None if self.texts is None else take_texts(self.texts, indices)
        return Rows(inputs, labels, owners, tasks, texts)


def _take_rows(column: NDArray[Any], indices: NDArray[np.integer]) -> NDArray[Any]:
    flat = column.ndim == 1 and column.dtype.kind in "iufb" and indices.dtype.kind in "iu"
    return growing_array.take_rows(column, indices) if flat else column[indices]


BINS = 10
"""Quantile bins that stand for classes where labels are numbers."""


def assign_quantile_bins(numbers: NDArray[np.float64], bins: int = BINS) -> NDArray[np.int64]:
    """Which of at most `bins` bins with about equally many rows each number (rows,) lies in; equal ones in the same."""
    edges = np.unique(np.quantile(numbers, np.arange(1, bins) / bins)) if len(numbers) else np.zeros(0)
    return np.searchsorted(edges, numbers, side="right").astype(np.int64)


def join_rows(first: Rows, second: Rows) -> Rows:
    """The rows of both, one after the other; of labels, owners, tasks and texts what both have."""
    if isinstance(first.inputs, np.ndarray):
        inputs: Inputs = np.concatenate([first.inputs, np.asarray(second.inputs)])
    else:
        inputs = join_texts(first.inputs, cast(Sequence[str], second.inputs))

    def arrays(one: NDArray[Any] | None, other: NDArray[Any] | None) -> NDArray[Any] | None:
        if one is None or other is None:
            return None
        flat = one.ndim == other.ndim == 1 and one.dtype == other.dtype and one.dtype.kind in "iufb"
        return growing_array.concatenate([one, other]) if flat else np.concatenate([one, other])

    return Rows(
        inputs,
        arrays(first.labels, second.labels),
        arrays(first.owners, second.owners),
        arrays(first.tasks, second.tasks),
        None if first.texts is None or second.texts is None else join_texts(first.texts, second.texts),
    )


@dataclass(frozen=True, eq=False)
class Raters:
    """What several people have said of rows with two classes, each for themselves.

    Attributes:
        share: of the votes that are for the second class, (rows,), 0 to 1; who is undecided has half a vote for each.
        spread: standard deviation of the ratings, (rows,), in their units.
    """

    share: NDArray[np.float64]
    spread: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test rows of one task.

    Attributes:
        name: what the user asked for.
        kind: what `inputs` are.
        task: what is learned: classification, regression, multi_label, token_labels, causal_lm, instruction, dpo,
            seq2seq, retrieval, towers or captions, perhaps with settings: dpo(beta=0.2).
        train: rows that are split over the clients.
        test: rows that no client trains on; scored once, at the end.
        label_names: one name per class or label; of numbers, what they are called; None for language modelling.
        default_model: the name of the model part that suits this data set, or `NO_MODEL`.
        sampled: whether these are only some of its rows, so that figures of them are none of the data set's.
        validation: rows for tuning and the curve per round; None: some of `train` are held out.
        notes: what was taken by itself, in one line each.
        tasks: that are met one after the other, in whose order `Rows.tasks` counts; None: there is one.
        raters: of the test rows; None: each has its label alone.
        labels_of_rows: whether `label_names` are those that its training rows happen to have: nobody has named them.
        template: of prompts (`fedpeft.data.prompt_templates`), in which questions with answers are put; None: in the
            model's chat template, or as the setting of the part says.
    """

    name: str
    kind: Kind
    task: str
    train: Rows
    test: Rows
    label_names: tuple[str, ...] | None
    default_model: str
    sampled: bool = False
    validation: Rows | None = None
    notes: tuple[str, ...] = ()
    tasks: TaskSequence | None = None
    raters: Raters | None = None
    labels_of_rows: bool = False
    template: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise DataError(
                f"FP3134 {self.name} has rows of the kind {self.kind!r}; legal: {', '.join(get_args(Kind))}"
            )
        if self.raters is not None and {self.raters.share.shape, self.raters.spread.shape} != {(len(self.test),)}:
            raise DataError(f"FP3135 {self.name} has raters of other rows than its {len(self.test)} test rows")
        for part, rows in self.parts:
            if len(rows) == 0:
                raise DataError(f"FP3136 {self.name} has no {part} rows")
            _check_inputs(rows.inputs, self.kind, f"the {part} rows of {self.name}")
            if self.is_classification and rows.labels is None:
                raise DataError(f"FP3137 {self.name} has no labels for its {part} rows, which classification needs")
            if self.is_classification and rows.labels is not None:
                _check_classes(rows.labels, self.label_names, f"the {part} rows of {self.name}")
        if self.is_classification and self.train.labels is not None:
            classes = np.unique(self.train.labels)
            if len(classes) < 2:
                raise DataError(f"FP3138 {self.name} has one class only in its training rows; classification needs two")

    @property
    def parts(self) -> list[tuple[str, Rows]]:
        """Its rows, and what they are called in messages."""
        named = (("training", self.train), ("validation", self.validation), ("test", self.test))
        return [(part, rows) for part, rows in named if rows is not None]

    @property
    def is_classification(self) -> bool:
        """Whether each row has one of several classes."""
        return self.task == "classification"

    @property
    def classes(self) -> int:
        """Number of classes, labels or numbers that a model says; 0 for language modelling."""
        return len(self.label_names or ())


def _check_inputs(inputs: Inputs, kind: Kind, which: str) -> None:
    """Refuse what a model can't read.

    Raises:
        DataError: texts that are none, or images that are no bytes of the right shape.
    """
    if kind == "text" and isinstance(inputs, np.ndarray):
        raise DataError(f"FP3139 {which} are texts in an array of {inputs.dtype}; give them as a list of str")
    if kind == "text" and isinstance(inputs, list | tuple):
        place = next((i for i, text in enumerate(inputs) if not isinstance(text, str)), None)
        if place is not None:
            raise DataError(f"FP3140 {which}: row {place} is {inputs[place]!r:.40}, and each must be a str")
    if kind == "image" and not (isinstance(inputs, np.ndarray) and inputs.dtype == np.uint8):
        told = f"an array of {inputs.dtype}" if isinstance(inputs, np.ndarray) else f"a {type(inputs).__name__}"
        raise DataError(f"FP3141 {which} are images as {told}; give a NumPy array of uint8, 0 to 255")


def _check_classes(labels: NDArray[Any], names: Sequence[str] | None, which: str) -> None:
    """Refuse labels that are no positions in the names of classes.

    Raises:
        DataError: says which.
    """
    if names is None:
        raise DataError(f"FP3142 {which} have classes, and label_names is None; give one name for each class")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"FP3143 {which} have labels of {labels.dtype}, shape {labels.shape}; classification takes int64 of shape "
            "(rows,)"
        )
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= len(names):
        wrong = least if least < 0 else most
        raise DataError(
            f"FP3144 {which} have the label {wrong}, and there are {len(names)} label_names, of classes 0 to "
            f"{len(names) - 1}"
        )


NO_MODEL = ""
"""The default model of data that no model part suits: the user names one."""


class Source(Protocol):
    """A data set part: where rows come from. With `suited_partition` it says how its rows lie where a run does not, and
    with `suited_head` how the head starts; with a true `task_in_rows`, that what is learned is known from rows only,
    as it is taken to be of a user's own that says nothing;
    with `training_settings`, names of settings, which of them leave the test rows as they are."""

    def load(self) -> Dataset:
        """Fetch, read and check the rows."""
        ...


def load_dataset(text: str) -> Dataset:
    """The data set that `text` describes: a part's name, `name(key=value)`, `file:PATH` or `hf:NAME`.

    Raises:
        ConfigError: unknown name or setting.
        AssetError: it can't be fetched.
        DataError: its rows can't be used.
    """
    return load_source(DATASETS.build(text), text)


def load_source(source: Source, text: str) -> Dataset:
    """Return the rows of a data set, checked; `text` names it in messages.

    Raises:
        AssetError: it can't be fetched.
        DataError: its rows can't be used.
    """
    made = source.load()
    if not isinstance(made, Dataset):
        raise DataError(
            f"FP3145 load() of {text} returns {type(made).__name__}, and must return a fedpeft.data.rows.Dataset"
        )
    if made.task == "token_labels":
        for part, rows in made.parts:
            check_tags(cast("Sequence[str]", rows.inputs), made.label_names or (), f"the {part} rows of {made.name}")
    return made


def get_default_partition(text: str) -> str | None:
    """How the rows of the data set that `text` describes are split by default; None: it has no way of its own.

    Raises:
        ConfigError: unknown name or setting.
    """
    return getattr(DATASETS.build(text), "suited_partition", None)


def get_default_head(text: str) -> str | None:
    """How the head starts by default on the data set that `text` describes; None: it has no way of its own.

    Raises:
        ConfigError: unknown name or setting.
    """
    return getattr(DATASETS.build(text), "suited_head", None)


def get_template(text: str) -> str | None:
    """The template of prompts that a setting of the data set names which `text` describes; None: none does.

    Raises:
        ConfigError: unknown name or setting.
    """
    return getattr(DATASETS.build(text), "template", None)


def get_test_source(text: str) -> str:
    """Where the test rows of the data set are from that `text` describes: its text, without the settings that leave
    them as they are, as what is learned from them (`task`) does. A part that is not there has told of none."""
    try:
        spec = parse_spec(text)
        part = DATASETS.part(spec.name)
    except ConfigError:
        return text
    without = ("task", *getattr(part, "training_settings", ()))
    return str(replace(spec, settings={k: v for k, v in sorted(spec.settings.items()) if k not in without}))


def read_task(text: str) -> str | None:
    """The task of the data set that `text` describes, where only its rows tell, which are read; None: others do.

    Raises:
        FedpeftError: as `load_dataset`.
    """
    return load_dataset(text).task if is_task_in_rows(text) else None


def is_task_in_rows(text: str) -> bool:
    """Whether only its rows tell what is learned of a data set; so of a user's own, whose part says no more."""
    part = DATASETS.build(text)
    return bool(getattr(part, "task_in_rows", plugins.name_of(type(part)) is not None))


def split_off_validation(dataset: Dataset) -> tuple[Rows, Rows]:
    """The training rows that clients get, and those that nobody gets: the data set's own validation rows, or of those
    for training `VALIDATION_ROWS`, or a tenth of fewer."""
    if dataset.validation is not None:
        return dataset.train, dataset.validation
    return split_validation(dataset.train, min(VALIDATION_ROWS, max(1, len(dataset.train) // 10)))


def split_validation(rows: Rows, count: int, seed: int = 0) -> tuple[Rows, Rows]:
    """Hold `count` rows out of training: (the rest, validation), each in the original order.

    Stratified over classes, or over owners where there are none: systematic sampling along the rows sorted by
    stratum and shuffled inside it gives every stratum its share to within one row. One row of every stratum is never a
    candidate, so that no class or owner disappears from training. The default seed is fixed on purpose: runs with
    different seeds are compared on the same validation rows.

    Raises:
        DataError: fewer than `count` rows can be held out.
    """
    return _sample_systematically(rows, count, seed)


def limit_rows(rows: Rows, most: int) -> Rows:
    """All rows, or `most` of them (0: all) in their order: a stratified choice that is always the same."""
    return rows if not most or len(rows) <= most else split_validation(rows, most)[1]


def split_test(rows: Rows, fraction: float, seed: int = 0) -> tuple[Rows, Rows]:
    """Hold out `fraction` (above 0, below 1) of the rows as a test set, stratified as in `split_validation`."""
    return _sample_systematically(rows, max(1, round(fraction * len(rows))), seed)


def _sample_systematically(rows: Rows, count: int, seed: int) -> tuple[Rows, Rows]:
    total = len(rows)
    generator = np.random.default_rng(seed)
    order = growing_array.create_zeros(total, np.int64)
    for part in growing_array.iterate_parts(total):
        order[part] = np.arange(part.start, part.stop)
    generator.shuffle(np.asarray(order))  # as `permutation` would, in place
    column: NDArray[Any] | None = rows.classes if rows.classes is not None else rows.owners
    if rows.tasks is not None:  # each task has its share, too
        within = np.zeros(total, np.int64) if column is None else np.unique(column, return_inverse=True)[1]
        column = rows.tasks * (int(within.max(initial=0)) + 1) + within
    found, strata = (np.zeros(1), np.zeros(total, np.int8)) if column is None else growing_array.find_unique(column)
    order = growing_array.sort_by_group(order, strata, len(found))
    sizes = growing_array.count_groups(strata, len(found))
    firsts = (np.cumsum(sizes) - sizes)[sizes > 0]  # of each stratum, along the order: never candidates
    candidates = total - len(firsts)
    if not 0 < count <= candidates:
        raise DataError(
            f"FP3146 {count} rows can't be held out of {total}: at least one must be, and one row of each of the "
            f"{len(firsts)} classes or owners stays in training"
        )
    step = candidates / count
    places = ((np.arange(count) + generator.random()) * step).astype(np.int64)  # among the candidates
    places += np.searchsorted(firsts - np.arange(len(firsts)), places, side="right")  # along the order
    held = np.sort(order[places])
    taken_out = growing_array.create_zeros(total, bool)
    taken_out[held] = True
    return rows.take(growing_array.find_unmarked(taken_out)), rows.take(held)

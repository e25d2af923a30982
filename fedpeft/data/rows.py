"""Containers for datasets, and the fixed validation split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.images_with_texts import is_patch_labeling
from fedpeft.data.masks import check_masks
from fedpeft.data.tagged_words import check_tags
from fedpeft.data.task_sequence import TaskSequence
from fedpeft.data.text_column import join_texts, take_texts
from fedpeft.errors import ConfigError, DataError
from fedpeft.machine import growing_array
from fedpeft.parts import plugins
from fedpeft.parts.families import DATASETS
from fedpeft.parts.spec import parse_spec

Kind = Literal["text", "image", "clip"]
Inputs = Sequence[str] | NDArray[np.generic]

CLIP_AXES = 5
"""Number of axes of an array of clips: example, frame, and those of an image with its colors."""

VALIDATION_ROWS = 1000
"""Number of training examples held out for validation; a tenth of the examples if there are fewer than ten times as
many.
"""


@dataclass(frozen=True, eq=False)
class Rows:
    """Examples, in a fixed order.

    Attributes:
        inputs: texts, one string per example, in a list or on disk (`fedpeft.data.text_column`); or images, uint8
            (rows, height, width) or (rows, height, width, 3), 0 to 255; or clips, uint8 (rows, frames, height, width,
            3).
        labels: classes, int64 (rows,), 0 <= label < number of classes; numbers to predict, float64 (rows,); any of
            several labels, int8 (rows, labels), 0 or 1; None for causal language modeling.
        owners: (rows,) of str or int, the person or site that an example belongs to; None if unknown.
        tasks: int64 (rows,), the task of each example in a sequence of tasks, from 0; None: there is one task.
        texts: the text that belongs to each image; None: there are none. An empty text, or an image of zeros, is
            missing at the example's owner.
        masks: the label of each pixel, uint8 (rows, height, width), `fedpeft.data.masks.VOID` for none; None: there are
            none.
    """

    inputs: Inputs
    labels: NDArray[Any] | None = None
    owners: NDArray[np.generic] | None = None
    tasks: NDArray[np.int64] | None = None
    texts: Sequence[str] | None = None
    masks: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        """Check that all columns have one entry per example."""
        if self.masks is not None and len(self.masks) != len(self.inputs):
            raise DataError(f"FP3412 {len(self.inputs)} inputs but {len(self.masks)} masks; give one mask for each")
        if self.texts is not None and len(self.texts) != len(self.inputs):
            raise DataError(f"FP3131 {len(self.inputs)} inputs but {len(self.texts)} texts")
        for name, column in (("labels", self.labels), ("owners", self.owners), ("tasks", self.tasks)):
            if not isinstance(column, np.ndarray | None):
                raise DataError(
                    f"FP3132 {name} are a {type(column).__name__}, but must be a NumPy array; np.array converts them"
                )
            if column is None:
                continue
            shape = column.shape[:1] if name == "labels" else column.shape
            if shape != (len(self.inputs),):
                raise DataError(f"FP3133 {len(self.inputs)} inputs but {name} of shape {column.shape}")

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.inputs)

    @property
    def targets(self) -> str:
        """Type of the labels: "classes", "numbers", "labels" (any of several per example), or "" without labels."""
        if self.labels is None:
            return ""
        if self.labels.ndim != 1:
            return "labels"
        return "numbers" if self.labels.dtype.kind == "f" else "classes"

    @property
    def classes(self) -> NDArray[np.int64] | None:
        """Class of each example, (rows,), or the quantile bin of its number, one of `BINS`.

        None without labels, or with several per example.
        """
        if self.labels is None or self.targets == "labels":
            return None
        return assign_quantile_bins(self.labels) if self.targets == "numbers" else self.labels

    def take(self, indices: NDArray[np.integer]) -> Rows:
        """Return the examples at `indices` (int, any length), in that order; texts are shared, arrays are copied."""
        if isinstance(self.inputs, np.ndarray):
            inputs: Inputs = self.inputs[indices]
        else:
            inputs = take_texts(self.inputs, indices)
        columns = (self.labels, self.owners, self.tasks)
        labels, owners, tasks = (None if column is None else _take_rows(column, indices) for column in columns)
        texts = None if self.texts is None else take_texts(self.texts, indices)
        return Rows(inputs, labels, owners, tasks, texts, None if self.masks is None else self.masks[indices])


def _take_rows(column: NDArray[Any], indices: NDArray[np.integer]) -> NDArray[Any]:
    flat = column.ndim == 1 and column.dtype.kind in "iufb" and indices.dtype.kind in "iu"
    return growing_array.take_rows(column, indices) if flat else column[indices]


BINS = 10
"""Number of quantile bins that serve as classes if labels are numbers."""


def assign_quantile_bins(numbers: NDArray[np.float64], bins: int = BINS) -> NDArray[np.int64]:
    """Return the bin of each number, int64 (rows,), of at most `bins` bins of about equal size.

    Equal numbers share a bin.
    """
    edges = np.unique(np.quantile(numbers, np.arange(1, bins) / bins)) if len(numbers) else np.zeros(0)
    return np.searchsorted(edges, numbers, side="right").astype(np.int64)


def join_rows(first: Rows, second: Rows) -> Rows:
    """Return the examples of both, one after the other, with the columns that both have."""
    if isinstance(first.inputs, np.ndarray):
        inputs: Inputs = np.concatenate([first.inputs, np.asarray(second.inputs)])
    else:
        inputs = join_texts(first.inputs, cast(Sequence[str], second.inputs))

    def join_columns(one: NDArray[Any] | None, other: NDArray[Any] | None) -> NDArray[Any] | None:
        if one is None or other is None:
            return None
        flat = one.ndim == other.ndim == 1 and one.dtype == other.dtype and one.dtype.kind in "iufb"
        return growing_array.concatenate([one, other]) if flat else np.concatenate([one, other])

    return Rows(
        inputs,
        join_columns(first.labels, second.labels),
        join_columns(first.owners, second.owners),
        join_columns(first.tasks, second.tasks),
        None if first.texts is None or second.texts is None else join_texts(first.texts, second.texts),
        join_columns(first.masks, second.masks),
    )


@dataclass(frozen=True, eq=False)
class Raters:
    """Votes of several independent raters on examples with two classes.

    Attributes:
        share: share of votes for the second class, (rows,), 0 to 1; an undecided rater has half a vote for each.
        spread: standard deviation of the ratings, (rows,), in their units.
    """

    share: NDArray[np.float64]
    spread: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples of one task.

    Attributes:
        name: the name that the user gave.
        kind: type of `inputs`.
        task: classification, regression, multi_label, token_labels, causal_lm, instruction, dpo, seq2seq, retrieval,
            towers or captions, perhaps with settings: dpo(beta=0.2).
        train: examples that are split over the clients.
        test: examples that no client trains on; evaluated once, at the end.
        label_names: one name per class or label; for numbers, the name of the column; None for language modeling.
        default_model: the name of the model part that suits this dataset, or `NO_MODEL`.
        sampled: whether these are only some of its examples, so that results do not hold for the dataset.
        validation: examples that choose the kept state, and for the curve per round; None: some of `train` are held
            out.
        notes: one line for each choice that was made automatically, and for what is synthetic.
        tasks: the sequence of tasks that `Rows.tasks` counts; None: there is one task.
        raters: the raters of the test examples; None: only their labels exist.
        labels_of_rows: whether `label_names` were collected from the training examples, because nobody named them.
        template: the prompt template of questions with answers (`fedpeft.data.prompt_templates`); None: the model's
            chat template, or the part's setting.
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
        """Check that the examples fit the task.

        Raises:
            DataError: a split is empty, or inputs, labels, names or raters do not fit together.
        """
        if self.kind not in get_args(Kind):
            raise DataError(
                f"FP3134 {self.name} has inputs of the unknown kind {self.kind!r}; legal: {', '.join(get_args(Kind))}"
            )
        if self.raters is not None and {self.raters.share.shape, self.raters.spread.shape} != {(len(self.test),)}:
            raise DataError(f"FP3135 {self.name} must have raters for each of its {len(self.test)} test examples")
        for part, rows in self.parts:
            if len(rows) == 0:
                raise DataError(f"FP3136 {self.name} has no {part} examples")
            _check_inputs(rows.inputs, self.kind, f"the {part} examples of {self.name}")
            if self.is_classification and rows.labels is None:
                raise DataError(f"FP3137 {self.name} has no labels for its {part} examples, which classification needs")
            if self.is_classification and rows.labels is not None:
                _check_classes(rows.labels, self.label_names, f"the {part} examples of {self.name}")
        if self.is_classification and self.train.labels is not None:
            classes = np.unique(self.train.labels)
            if len(classes) < 2:
                raise DataError(
                    f"FP3138 {self.name} has one class only in its training examples; classification needs two"
                )

    @property
    def parts(self) -> list[tuple[str, Rows]]:
        """Splits that exist, with their names for messages."""
        named = (("training", self.train), ("validation", self.validation), ("test", self.test))
        return [(part, rows) for part, rows in named if rows is not None]

    @property
    def is_classification(self) -> bool:
        """Whether each example has one of several classes."""
        return self.task == "classification"

    @property
    def classes(self) -> int:
        """Number of classes, labels or numbers that a model predicts; 0 for language modeling."""
        return len(self.label_names or ())


def _check_inputs(inputs: Inputs, kind: Kind, which: str) -> None:
    """Reject inputs that a model can't read.

    Raises:
        DataError: an input is not a text, or images are not bytes of the right shape.
    """
    if kind == "text" and isinstance(inputs, np.ndarray):
        raise DataError(f"FP3139 {which} are texts in an array of {inputs.dtype}; give them as a list of str")
    if kind == "text" and isinstance(inputs, list | tuple):
        place = next((i for i, text in enumerate(inputs) if not isinstance(text, str)), None)
        if place is not None:
            raise DataError(f"FP3140 {which}: example {place} is {inputs[place]!r:.40}, but each must be a str")
    if kind != "text" and not (isinstance(inputs, np.ndarray) and inputs.dtype == np.uint8):
        told = f"an array of {inputs.dtype}" if isinstance(inputs, np.ndarray) else f"a {type(inputs).__name__}"
        raise DataError(f"FP3141 {which} are {kind}s as {told}; give a NumPy array of uint8, 0 to 255")
    if kind == "clip" and (np.ndim(inputs) != CLIP_AXES or np.shape(inputs)[-1] != 3):
        raise DataError(
            f"FP3423 {which} are clips of shape {np.shape(inputs)}; give (rows, frames, height, width, 3), with colors"
        )


def _check_classes(labels: NDArray[Any], names: Sequence[str] | None, which: str) -> None:
    """Reject labels that are not positions in the names of classes.

    Raises:
        DataError: describes the wrong labels.
    """
    if names is None:
        raise DataError(f"FP3142 {which} have classes, but label_names is None; give one name for each class")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"FP3143 {which} have labels of {labels.dtype}, shape {labels.shape}; classification takes int64 of shape "
            "(rows,)"
        )
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= len(names):
        wrong = least if least < 0 else most
        raise DataError(
            f"FP3144 {which} have the label {wrong}, but {len(names)} label_names allow only 0 to {len(names) - 1}"
        )


NO_MODEL = ""
"""Default model of datasets that no model part suits; the user must choose one."""


class Source(Protocol):
    """Interface of a dataset part, which loads examples.

    A part may also have these attributes:

    - `suited_partition`: the default partition.
    - `suited_head`: the default start of the head.
    - `task_in_rows`: whether only the examples determine the task. The default is true for a user's part without it.
    - `training_settings`: names of settings that leave the test examples as they are.
    - `has_tasks`: whether the examples belong to tasks of continual learning (`fedpeft.data.task_sequence`).
    """

    def load(self) -> Dataset:
        """Fetch, read and check the examples."""
        ...


def load_dataset(text: str) -> Dataset:
    """Return the dataset that `text` describes: a part's name, `name(key=value)`, `file:PATH` or `hf:NAME`.

    Raises:
        ConfigError: unknown name or setting.
        AssetError: it can't be fetched.
        DataError: its rows can't be used.
    """
    return load_source(DATASETS.build(text), text)


def load_source(source: Source, text: str) -> Dataset:
    """Return the rows of a dataset, checked; `text` names it in messages.

    Raises:
        AssetError: it can't be fetched.
        DataError: its rows can't be used.
    """
    made = source.load()
    if not isinstance(made, Dataset):
        raise DataError(
            f"FP3145 load() of {text} returns {type(made).__name__}, but must return a fedpeft.data.rows.Dataset"
        )
    if is_patch_labeling(made.task):
        for part, rows in made.parts:
            check_masks(rows.inputs, rows.masks, made.label_names or (), f"the {part} examples of {made.name}")
    if made.task == "token_labels":
        for part, rows in made.parts:
            check_tags(
                cast("Sequence[str]", rows.inputs), made.label_names or (), f"the {part} examples of {made.name}"
            )
    return made


def get_default_partition(text: str) -> str | None:
    """Return the default partition of the dataset that `text` describes; None: it has no preference.

    Raises:
        ConfigError: unknown name or setting.
    """
    return getattr(DATASETS.build(text), "suited_partition", None)


def get_default_head(text: str) -> str | None:
    """Return the default start of the head for the dataset that `text` describes; None: it has no preference.

    Raises:
        ConfigError: unknown name or setting.
    """
    return getattr(DATASETS.build(text), "suited_head", None)


def get_template(dataset: str | Source) -> str | None:
    """Return the prompt template that the settings of a dataset, or of its text, select; None: none.

    Raises:
        ConfigError: unknown name or setting.
    """
    return getattr(DATASETS.build(dataset), "template", None)


def has_tasks(source: Source) -> bool:
    """Return whether the examples belong to tasks of continual learning."""
    return bool(getattr(source, "has_tasks", False))


def get_test_source(text: str) -> str:
    """Return the dataset's text without the settings that do not change its test examples.

    `task` is one of them. If the part does not exist, the text is returned unchanged.
    """
    try:
        spec = parse_spec(text)
        part = DATASETS.part(spec.name)
    except ConfigError:
        return text
    without = ("task", *getattr(part, "training_settings", ()))
    return str(replace(spec, settings={k: v for k, v in sorted(spec.settings.items()) if k not in without}))


def read_task(text: str) -> str | None:
    """Return the dataset's task if only its examples determine it, after reading them; otherwise None.

    Raises:
        FedpeftError: see `load_dataset`.
    """
    return load_dataset(text).task if is_task_in_rows(text) else None


def is_task_in_rows(text: str) -> bool:
    """Return whether only the examples determine the task, which is also the default for a user's own part."""
    part = DATASETS.build(text)
    return bool(getattr(part, "task_in_rows", plugins.name_of(type(part)) is not None))


def split_off_validation(dataset: Dataset) -> tuple[Rows, Rows]:
    """Return the examples for the clients, and the validation examples.

    Without a validation set, `VALIDATION_ROWS` training examples are held out, or a tenth of fewer.
    """
    if dataset.validation is not None:
        return dataset.train, dataset.validation
    return split_validation(dataset.train, min(VALIDATION_ROWS, max(1, len(dataset.train) // 10)))


def split_validation(rows: Rows, count: int, seed: int = 0) -> tuple[Rows, Rows]:
    """Hold out `count` rows for validation; return the rest and these, both in the original order.

    The split is stratified over classes, or over owners if there are no classes. Systematic sampling along the rows,
    sorted by stratum and shuffled inside it, gives every stratum its share to within one row. One row of every stratum
    is never a candidate, so no class or owner disappears from training. The default seed is fixed on purpose: runs with
    different seeds are compared on the same validation examples.

    Raises:
        DataError: fewer than `count` rows can be held out.
    """
    return _sample_systematically(rows, count, seed)


def limit_rows(rows: Rows, most: int) -> Rows:
    """Return all rows, or `most` of them (0: all) in their order: a stratified sample that is always the same."""
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
            f"FP3146 {count} examples can't be held out of {total}; legal are 1 to {candidates}, since one "
            f"example of each of the {len(firsts)} classes or owners stays in training"
        )
    step = candidates / count
    places = ((np.arange(count) + generator.random()) * step).astype(np.int64)  # among the candidates
    places += np.searchsorted(firsts - np.arange(len(firsts)), places, side="right")  # along the order
    held = np.sort(order[places])
    taken_out = growing_array.create_zeros(total, bool)
    taken_out[held] = True
    return rows.take(growing_array.find_unmarked(taken_out)), rows.take(held)

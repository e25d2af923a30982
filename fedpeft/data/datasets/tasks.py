"""Continual learning: tasks that arrive one after another, from several datasets or from the classes of one.

    tasks(reuters_r8, reviews)                 two datasets; the classes of both, side by side
    tasks('20newsgroups', classes=5)           one dataset, in steps of five classes in the order of their names
    tasks('tiny(seed=1)', 'tiny(seed=2)', shared=True)    classes of equal names are one

The head has a place for every class from the start, so the model's shape never changes. `Rows.tasks` holds the task of
each example. Each task's examples are split over the clients separately, so every client meets every task. Owners are
left out, because the owners of one dataset are not those of another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.rows import Dataset, Rows, get_default_partition, is_task_in_rows, join_rows
from fedpeft.data.task_sequence import COMPETE, TaskSchedule, TaskSequence
from fedpeft.data.user_rows import get_text_column
from fedpeft.errors import ConfigError, DataError
from fedpeft.parts import setting
from fedpeft.parts.families import DATASETS


@dataclass(frozen=True)
class Tasks:
    """A sequence of tasks for continual learning."""

    sets: tuple[str, ...] = setting(
        dataclasses.MISSING, "the datasets, in the order in which they arrive", nested=DATASETS
    )
    classes: int = setting(0, "classes per task of a single dataset; 0: each dataset is a task", low=0)
    every: int = setting(0, "rounds per task; 0: divide the run's rounds evenly", low=0)
    late: int = setting(0, "most rounds by which clients start each next task late", low=0)
    compete: str = setting(
        "task", "classes that a client's loss compares: those of its task, those seen so far, or all", choices=COMPETE
    )
    shared: bool = setting(False, "treat classes of equal names in several datasets as one class")

    argument: ClassVar[str] = "sets"
    has_tasks: ClassVar[bool] = True
    training_settings: ClassVar[tuple[str, ...]] = ("every", "late", "compete")

    @property
    def task_in_rows(self) -> bool:
        """Whether the first dataset must be read to determine the task.

        A dataset with its own default partition is read, too, since it may have no classes.
        """
        first = str(self.sets[0])
        return is_task_in_rows(first) or get_default_partition(first) is not None

    @property
    def text(self) -> str:
        """Text column of all datasets.

        Raises:
            ConfigError: the datasets have different text columns.
        """
        columns = list(dict.fromkeys(get_text_column(str(text)) for text in self.sets))
        if len(columns) > 1:
            raise ConfigError(
                f"FP1096 the tasks' texts are in different columns, {', '.join(columns)}; name the one of --data: "
                "--text COLUMN"
            )
        return columns[0]

    def load(self) -> Dataset:
        """Return the examples of all tasks, each with its task.

        Raises:
            ConfigError: there are fewer than two tasks, or one model can't learn all datasets.
            FedpeftError: a dataset can't be loaded.
        """
        texts = [str(text) for text in self.sets]
        if self.classes and len(texts) != 1:
            raise ConfigError(
                f"FP1097 tasks(classes={self.classes}) splits one dataset, got {len(texts)}; leave classes out, or "
                "name one"
            )
        if not self.classes and len(texts) < 2:
            raise ConfigError(
                "FP1098 tasks needs two or more datasets, or one dataset and classes=N for tasks of N classes each"
            )
        loaded = [DATASETS.build(text).load() for text in texts]
        for data in loaded:
            if (data.kind, data.task) != (loaded[0].kind, loaded[0].task):
                raise ConfigError(
                    f"FP1099 tasks need datasets of one type, but {texts[0]} is {loaded[0].kind}, {loaded[0].task}, "
                    f"and {data.name} is {data.kind}, {data.task}; choose others"
                )
            if data.task == "token_labels":
                raise ConfigError(
                    f"FP1100 {data.name} has token labels, which tasks do not support; choose datasets with class "
                    "labels"
                )
            if data.train.targets in ("numbers", "labels"):
                raise ConfigError(
                    f"FP1101 {data.name} has no class labels, which tasks need; choose datasets with one class per "
                    "example"
                )
            if data.tasks is not None:
                raise ConfigError("FP1102 a task can't be another tasks(...); name all datasets in one tasks(...)")
        return self._split_classes(loaded[0]) if self.classes else self._join(loaded)

    def _split_classes(self, data: Dataset) -> Dataset:
        """Return one dataset whose classes arrive a few at a time."""
        if not data.classes:
            raise ConfigError(
                f"FP1103 {data.name} has no classes for tasks(classes={self.classes}) to split; choose another dataset"
            )
        count = -(-data.classes // self.classes)
        if count < 2:
            raise ConfigError(
                f"FP1104 {data.name} has {data.classes} classes, so tasks(classes={self.classes}) is a single task; "
                "give fewer classes per task"
            )
        groups = [range(i * self.classes, min((i + 1) * self.classes, data.classes)) for i in range(count)]
        labels = data.label_names or ()
        names = tuple(", ".join(labels[c] for c in group) for group in groups)
        of_class = np.arange(data.classes) // self.classes

        def assign_task(rows: Rows) -> Rows:
            assert rows.labels is not None  # since the task is a classification
            return dataclasses.replace(rows, owners=None, tasks=of_class[rows.labels].astype(np.int64))

        validation = None if data.validation is None else assign_task(data.validation)
        return dataclasses.replace(
            data,
            name=f"{data.name} in {count} tasks",
            train=assign_task(data.train),
            test=assign_task(data.test),
            validation=validation,
            tasks=self._create_sequence(names, [tuple(group) for group in groups]),
        )

    def _join(self, loaded: Sequence[Dataset]) -> Dataset:
        """Return several datasets as one sequence; their own validation examples become training examples."""
        names = _number_duplicates([data.name for data in loaded])

        def assign_task(rows: Rows, task: int, places: NDArray[np.int64]) -> Rows:
            labels = None if rows.labels is None else places[rows.labels]
            return Rows(rows.inputs, labels, None, np.full(len(rows), task, np.int64))

        def concatenate(parts: Sequence[Rows]) -> Rows:
            whole = parts[0]
            for part in parts[1:]:
                if isinstance(whole.inputs, np.ndarray) and whole.inputs.shape[1:] != np.shape(part.inputs)[1:]:
                    raise DataError(
                        "FP3048 the images of these datasets differ in size; tasks needs images of one size"
                    )
                whole = join_rows(whole, part)
            return whole

        position: dict[str, int] = {}  # of each class in the head
        train, test, classes = [], [], []
        for task, (name, data) in enumerate(zip(names, loaded, strict=True)):
            labels = [label if self.shared else f"{name}: {label}" for label in data.label_names or ()]
            places = np.array([position.setdefault(label, len(position)) for label in labels], np.int64)
            rows = data.train if data.validation is None else join_rows(data.train, data.validation)
            train.append(assign_task(rows, task, places))
            test.append(assign_task(data.test, task, places))
            classes.append(tuple(sorted(places.tolist())))
        return Dataset(
            name=", then ".join(names),
            kind=loaded[0].kind,
            task=loaded[0].task,
            train=concatenate(train),
            test=concatenate(test),
            label_names=tuple(position) or None,
            default_model=loaded[0].default_model,
            template=loaded[0].template,
            sampled=any(data.sampled for data in loaded),
            labels_of_rows=any(data.labels_of_rows for data in loaded),
            notes=tuple(note for data in loaded for note in data.notes),
            tasks=self._create_sequence(tuple(names), classes),
        )

    def _create_sequence(self, names: tuple[str, ...], classes: Sequence[tuple[int, ...]]) -> TaskSequence:
        return TaskSequence(names, tuple(classes), TaskSchedule(len(names), self.every, self.late), self.compete)


def _number_duplicates(names: Sequence[str]) -> list[str]:
    """Return the names, with a number after those that occur several times."""
    return [name if names.count(name) == 1 else f"{name} {names[: i + 1].count(name)}" for i, name in enumerate(names)]


part = Tasks

"""Tasks one after the other: other data sets, or the classes of one, a few at a time.

    tasks(reuters_r8, reviews)                 two data sets; the classes of both, side by side
    tasks('20newsgroups', classes=5)           one data set, in steps of five classes in the order of their names
    tasks('tiny(seed=1)', 'tiny(seed=2)', shared=True)    classes of equal names are one

A class has one place in the head from the beginning, so that the model's shape never changes. Every row knows its task
(`Rows.tasks`). The rows of each task are split over the clients by themselves, so that every client meets every task;
owners are left out, since those of one data set are not those of another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.data.rows import DATASETS, Dataset, Rows, get_default_partition, is_task_in_rows, join_rows
from fedpeft.data.task_sequence import COMPETE, TaskSchedule, TaskSequence
from fedpeft.data.user_rows import get_text_column
from fedpeft.errors import ConfigError, DataError
from fedpeft.parts import setting


@dataclass(frozen=True)
class Tasks:
    """A sequence of tasks, for continual federations."""

    sets: tuple[str, ...] = setting(
        dataclasses.MISSING, "texts of the data sets, in the order in which they are met", nested=DATASETS
    )
    classes: int = setting(0, "classes of a task, of the one data set that is named; 0: each data set is a task", low=0)
    every: int = setting(0, "rounds of a task; 0: the run's rounds, evenly", low=0)
    late: int = setting(0, "clients meet each next task up to so many rounds later", low=0)
    compete: str = setting(
        "task", "classes that a client's loss compares: of its task, seen so far, or all", choices=COMPETE
    )
    shared: bool = setting(False, "classes of equal names in several data sets are one class")

    argument: ClassVar[str] = "sets"
    training_settings: ClassVar[tuple[str, ...]] = ("every", "late", "compete")

    @property
    def task_in_rows(self) -> bool:
        """That of the first data set; one whose rows lie in a way of their own may have no classes, and is read."""
        first = str(self.sets[0])
        return is_task_in_rows(first) or get_default_partition(first) is not None

    @property
    def text(self) -> str:
        """The column of texts of all data sets.

        Raises:
            ConfigError: they have several.
        """
        columns = list(dict.fromkeys(get_text_column(str(text)) for text in self.sets))
        if len(columns) > 1:
            raise ConfigError(
                f"FP1096 the tasks' texts stand in the columns {', '.join(columns)}; name that of --data: --text"
            )
        return columns[0]

    def load(self) -> Dataset:
        """The rows of all tasks, with the task of each.

        Raises:
            ConfigError: fewer than two tasks, or data sets that no one model could learn.
            FedpeftError: as of the data sets.
        """
        texts = [str(text) for text in self.sets]
        if self.classes and len(texts) != 1:
            raise ConfigError(f"FP1097 tasks(classes={self.classes}) splits one data set, and {len(texts)} are named")
        if not self.classes and len(texts) < 2:
            raise ConfigError(
                "FP1098 tasks needs two data sets or more, or one and classes=N, of which each task has N"
            )
        loaded = [DATASETS.build(text).load() for text in texts]
        for data in loaded:
            if (data.kind, data.task) != (loaded[0].kind, loaded[0].task):
                raise ConfigError(
                    f"FP1099 tasks are learned by one model: {texts[0]} is {loaded[0].kind}, {loaded[0].task}, and "
                    f"{data.name} is {data.kind}, {data.task}"
                )
            if data.task == "token_labels":
                raise ConfigError(
                    f"FP1100 {data.name} has labels of words, whose classes tasks can't tell apart so far"
                )
            if data.train.targets in ("numbers", "labels"):
                raise ConfigError(
                    f"FP1101 {data.name} has no classes that a row has one of, and tasks are told apart by them"
                )
            if data.tasks is not None:
                raise ConfigError("FP1102 tasks can't be made of tasks; name the data sets of all of them in one")
        return self._split_classes(loaded[0]) if self.classes else self._join(loaded)

    def _split_classes(self, data: Dataset) -> Dataset:
        """One data set, its classes a few at a time."""
        if not data.classes:
            raise ConfigError(f"FP1103 {data.name} has no classes, which tasks(classes={self.classes}) would split")
        count = -(-data.classes // self.classes)
        if count < 2:
            raise ConfigError(
                f"FP1104 {data.name} has {data.classes} classes, so that tasks(classes={self.classes}) is one task; "
                "take fewer"
            )
        groups = [range(i * self.classes, min((i + 1) * self.classes, data.classes)) for i in range(count)]
        labels = data.label_names or ()
        names = tuple(", ".join(labels[c] for c in group) for group in groups)
        of_class = np.arange(data.classes) // self.classes

        def placed(rows: Rows) -> Rows:
            assert rows.labels is not None  # of a classification
            return dataclasses.replace(rows, owners=None, tasks=of_class[rows.labels].astype(np.int64))

        validation = None if data.validation is None else placed(data.validation)
        return dataclasses.replace(
            data,
            name=f"{data.name} in {count} tasks",
            train=placed(data.train),
            test=placed(data.test),
            validation=validation,
            tasks=self._create_sequence(names, [tuple(group) for group in groups]),
        )

    def _join(self, loaded: Sequence[Dataset]) -> Dataset:
        """Several data sets, one after the other; validation rows of their own become rows to train on."""
        names = _number_duplicates([data.name for data in loaded])
        labels = [
            [label if self.shared else f"{name}: {label}" for label in data.label_names or ()]
            for name, data in zip(names, loaded, strict=True)
        ]
        all_labels = list(dict.fromkeys(label for some in labels for label in some))
        places = [np.array([all_labels.index(label) for label in some], np.int64) for some in labels]

        def placed(rows: Rows, task: int) -> Rows:
            known = None if rows.labels is None else places[task][rows.labels]
            return Rows(rows.inputs, known, None, np.full(len(rows), task, np.int64))

        def together(parts: Sequence[Rows]) -> Rows:
            whole = parts[0]
            for part in parts[1:]:
                if isinstance(whole.inputs, np.ndarray) and whole.inputs.shape[1:] != np.shape(part.inputs)[1:]:
                    raise DataError("FP3048 the images of these data sets differ in size; tasks needs equal ones")
                whole = join_rows(whole, part)
            return whole

        train = [
            placed(data.train if data.validation is None else join_rows(data.train, data.validation), task)
            for task, data in enumerate(loaded)
        ]
        return Dataset(
            name=", then ".join(names),
            kind=loaded[0].kind,
            task=loaded[0].task,
            train=together(train),
            test=together([placed(data.test, task) for task, data in enumerate(loaded)]),
            label_names=tuple(all_labels) or None,
            default_model=loaded[0].default_model,
            template=loaded[0].template,
            sampled=any(data.sampled for data in loaded),
            labels_of_rows=any(data.labels_of_rows for data in loaded),
            notes=tuple(note for data in loaded for note in data.notes),
            tasks=self._create_sequence(tuple(names), [tuple(sorted(place.tolist())) for place in places]),
        )

    def _create_sequence(self, names: tuple[str, ...], classes: Sequence[tuple[int, ...]]) -> TaskSequence:
        return TaskSequence(names, tuple(classes), TaskSchedule(len(names), self.every, self.late), self.compete)


def _number_duplicates(names: Sequence[str]) -> list[str]:
    """The names, with a number where several are equal."""
    return [name if names.count(name) == 1 else f"{name} {names[: i + 1].count(name)}" for i, name in enumerate(names)]


part = Tasks

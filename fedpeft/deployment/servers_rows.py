"""What a server of real clients knows of their rows: what is learned, the names of labels, and rows of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.config import RunConfig
from fedpeft.data.label_columns import AND, named
from fedpeft.data.rows import NO_MODEL, Dataset, Rows, load_dataset, without_validation
from fedpeft.data.text_to_text import pair_rows
from fedpeft.data.user_rows import Described, labelled_rows
from fedpeft.deployment.options import OWN_TEST, ServeOptions
from fedpeft.deployment.served_settings import check_tasks, told_task
from fedpeft.errors import ConfigError
from fedpeft.models.task import TASKS

JOINED = ("classification", "regression", "multi_label", "causal_lm", "seq2seq")
"""Tasks that clients of a server can join with their own rows."""

PAIRED = "seq2seq"
"""The task of pairs of texts."""


@dataclass(frozen=True, eq=False)
class ServersRows:
    """What a server knows of its clients' task, and the rows that it has itself: for validation, perhaps none."""

    dataset: Dataset
    validation: Rows

    @classmethod
    def of(cls, config: RunConfig, options: ServeOptions) -> ServersRows:
        """As the options say.

        Raises:
            FedpeftError: class names or rows that can't be used.
        """
        source = None
        task = told_task(options)
        targets = TASKS.build(task).targets if task else "classes"
        names: tuple[str, ...] | None = None
        if options.labels:
            names = named(options.labels, least=2 if targets == "classes" else 1)
        if targets == "numbers":
            names = (options.label_column,)
        elif targets == "labels" and AND in options.label_column:
            names = names or tuple(options.label_column.split(AND))
        rows, test = Rows([], no_labels(targets, names)), None
        if options.eval_data == OWN_TEST or not (names or options.eval_data or task == PAIRED):
            source = load_dataset(config.dataset)
            check_tasks(source.tasks)
            if task and source.task.partition("(")[0] != task.partition("(")[0]:
                kind = source.task.partition("(")[0]
                raise ConfigError(
                    f"--task {options.task!r} is not what {source.name} holds, which is {kind}; name the labels of the "
                    "clients' own rows, with --labels a,b,c or --label-column 'a + b', or leave --task out"
                )
            names, task = source.label_names, task or source.task
            targets = TASKS.build(task).targets
            if options.eval_data:
                rows, test = without_validation(source)[1], source.test
        elif options.eval_data and task == PAIRED:
            rows = pair_rows(options.eval_data, *options.columns(task))
        elif options.eval_data:
            rows, names = labelled_rows(options.eval_data, options.text_column, options.label_column, names, targets)
        if source is not None and (source.kind != "text" or source.task.partition("(")[0] not in JOINED):
            what = "conversations" if source.kind == "text" else "images"
            what = "pairs that are compared" if TASKS.build(source.task).compares else what
            raise ConfigError(f"{source.name} holds {what}; clients of a server join with texts")
        if names is None and not options.eval_data:
            rows = Rows([])
        elif source is not None and not options.eval_data:
            rows = Rows([], no_labels(targets, names))
        dataset = Described(
            name=source.name if source else "clients' own rows",
            kind="text",
            task=task if task and (names or task == PAIRED) else "classification" if names else "causal_lm",
            train=rows,
            test=test or rows,
            label_names=names,
            default_model=source.default_model if source else NO_MODEL if task == PAIRED else "minilm",
        )
        return cls(dataset, rows)


def no_labels(targets: str, names: tuple[str, ...] | None) -> NDArray[Any]:
    """The labels of no rows: of classes, numbers, or several of `names` each."""
    if targets == "labels":
        return np.zeros((0, len(names or ())), np.int8)
    return np.zeros(0, np.float64 if targets == "numbers" else np.int64)

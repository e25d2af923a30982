"""What a server of real clients knows of their rows: the form, what is learned, and rows of its own."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedpeft.config import RunConfig
from fedpeft.data.datasets.clients import CONVERSATIONS, Clients
from fedpeft.data.label_columns import AND, named
from fedpeft.data.prompt_templates import CHAT
from fedpeft.data.rows import DATASETS, Dataset, Rows, load_dataset, without_validation
from fedpeft.data.user_rows import Described
from fedpeft.deployment.options import OWN_TEST, ServeOptions
from fedpeft.deployment.served_settings import check_tasks, told_task
from fedpeft.errors import ConfigError
from fedpeft.models.task import TASKS
from fedpeft.parts import part_text
from fedpeft.spec import parse_spec

JOINED = ("classification", "regression", "multi_label", "causal_lm", "seq2seq", *CONVERSATIONS)
"""Tasks that clients of a server can join with their own rows."""

WITHOUT_LABELS = ("causal_lm", "seq2seq", *CONVERSATIONS)
"""Tasks of which there are no names to be told."""


@dataclass(frozen=True, eq=False)
class ServersRows:
    """What a server knows of its clients' task, and the rows that it has itself: for validation, perhaps none."""

    dataset: Dataset
    validation: Rows
    form: Clients

    @classmethod
    def of(cls, config: RunConfig, options: ServeOptions) -> ServersRows:
        """As the options say.

        Raises:
            FedpeftError: class names or rows that can't be used.
        """
        form = form_of(config, options)
        if form is None:
            return cls._as_loaded(config, options)
        names, targets = form.names, TASKS.build(form.task).targets
        rows = form.no_rows(targets, names)
        if options.eval_data:
            rows, known = form.read(Path(options.eval_data), names, targets)
            names = known or None
        return cls._of("clients' own rows", form, names, rows)

    @classmethod
    def _as_loaded(cls, config: RunConfig, options: ServeOptions) -> ServersRows:
        """Of clients whose rows are as those of the configured data set."""
        source = load_dataset(config.dataset)
        check_tasks(source.tasks)
        kind, asked = parse_spec(source.task).name, told_task(options)
        if asked and kind != parse_spec(asked).name:
            raise ConfigError(
                f"--task {options.task!r} is not what {source.name} holds, which is {kind}; name the labels of the "
                "clients' own rows, with --labels a,b,c or --label-column 'a + b', or leave --task out"
            )
        if kind not in JOINED:
            what = "pairs that are compared" if TASKS.build(source.task).compares else f"rows of {kind}"
            raise ConfigError(
                f"{source.name} holds {what}; clients of a server join with texts, pairs of texts, conversations or "
                "pictures of classes"
            )
        form = Clients(
            task=asked or source.task,
            text=options.text_column,
            label=options.label_column,
            side=_side(source, options),
            template=_template(source, config.dataset, options),
        )
        targets = TASKS.build(form.task).targets
        rows = without_validation(source)[1] if options.eval_data else form.no_rows(targets, source.label_names)
        test = source.test if options.eval_data else None
        return cls._of(source.name, form, source.label_names, rows, test, source.default_model)

    @classmethod
    def _of(
        cls,
        name: str,
        form: Clients,
        names: tuple[str, ...] | None,
        rows: Rows,
        test: Rows | None = None,
        model: str | None = None,
    ) -> ServersRows:
        dataset = Described(
            name=name,
            kind=form.kind,
            task=form.task,
            train=rows,
            test=rows if test is None else test,
            label_names=names,
            default_model=form.default_model if model is None else model,
        )
        return cls(dataset, rows, form)


def form_of(config: RunConfig, options: ServeOptions) -> Clients | None:
    """The form of the clients' rows as the options tell it; None: that of the configured data set.

    Raises:
        ConfigError: options that contradict each other.
    """
    of_data = DATASETS.build(config.dataset)
    told = of_data if isinstance(of_data, Clients) else None
    task = told_task(options)
    targets = TASKS.build(task).targets if task else "classes"
    names = ",".join(named(options.labels, least=2 if targets == "classes" else 1)) if options.labels else None
    if targets == "numbers":
        names = options.label_column
    elif targets == "labels" and AND in options.label_column:
        names = names or ",".join(options.label_column.split(AND))
    by_itself = bool(task) and parse_spec(task).name in WITHOUT_LABELS
    if options.eval_data == OWN_TEST or not (names or options.eval_data or by_itself):
        return told
    return Clients(
        task=task or "classification",
        labels=names,
        text=options.text_column,
        label=options.label_column,
        side=options.side,
        template=options.template or None,
    )


def with_form(config: RunConfig, options: ServeOptions) -> RunConfig:
    """The settings with what the options tell of the clients' rows in place of a data set that nobody has asked for.

    Raises:
        ConfigError: options that contradict each other.
    """
    form = form_of(config, options)
    if form is None:
        return config
    model = (config.model == "auto" and form.default_model) or config.model
    return dataclasses.replace(config, dataset=part_text(form), model=model)


def _side(source: Dataset, options: ServeOptions) -> int:
    """Pixels per side of the pictures of a data set, or what is asked for; 0: it holds texts.

    Raises:
        ConfigError: it holds texts, and a side is asked for.
    """
    if source.kind == "image":
        return options.side or min(np.asarray(source.train.inputs).shape[1:3])
    if options.side:
        raise ConfigError(
            f"--side {options.side} is of pictures, and {source.name} holds texts; name the classes of the clients' "
            "pictures, with --labels a,b,c"
        )
    return 0


def _template(source: Dataset, dataset: str, options: ServeOptions) -> str | None:
    """What writes the conversations of a data set, or what is asked for; None: it holds none, or the model's own does.

    Raises:
        ConfigError: nobody says, and its rows are no conversations that the model's own template writes.
    """
    if options.template or parse_spec(source.task).name not in CONVERSATIONS:
        return options.template or None
    if own := getattr(DATASETS.build(dataset), "template", None):
        return str(own)
    row = json.loads(str(source.test.inputs[0]))
    if isinstance(row.get("chosen") if isinstance(row, dict) and "chosen" in row else row, list):
        return CHAT
    raise ConfigError(
        f"{source.name} holds prompts that were written by no template that it names, and clients must write theirs "
        "alike; give --template, such as --template alpaca"
    )

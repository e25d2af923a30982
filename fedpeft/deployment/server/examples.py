"""What a server of real clients knows of their rows: the form, what is learned, and rows of its own."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedpeft.config import RunConfig
from fedpeft.data.client_rows import LABEL, TEXT
from fedpeft.data.datasets.clients import CONVERSATIONS, Clients
from fedpeft.data.label_columns import AND, parse_names
from fedpeft.data.prompt_templates import CHAT, SUFFIX, read_template
from fedpeft.data.rows import DATASETS, Dataset, Rows, load_dataset, split_off_validation
from fedpeft.data.tagged_records import TASK as TOKEN_LABELS
from fedpeft.data.user_rows import DescribedDataset
from fedpeft.deployment.description import TOLD
from fedpeft.deployment.options import OWN_TEST, ServeOptions
from fedpeft.deployment.server.settings_checks import check_task, check_tasks
from fedpeft.errors import ConfigError
from fedpeft.models.task import TASKS
from fedpeft.parts import check_settings, format_part
from fedpeft.spec import parse_spec


@dataclass(frozen=True, eq=False)
class ServersRows:
    """What a server knows of its clients' task, and the rows that it has itself: for validation, perhaps none."""

    dataset: Dataset
    validation: Rows
    form: Clients

    @classmethod
    def load(cls, config: RunConfig, options: ServeOptions) -> ServersRows:
        """As the options say.

        Raises:
            FedpeftError: class names or rows that can't be used.
        """
        form = choose_form(config, options)
        if form is None:
            return cls._from_dataset(config, options)
        names, targets = form.names, TASKS.build(form.task).targets
        rows = form.create_empty_rows(targets, names)
        if options.eval_data:
            rows, known = form.read(Path(options.eval_data), names, targets)
            names = known or None
        return cls._from_rows("clients' own rows", form, names, rows)

    @classmethod
    def _from_dataset(cls, config: RunConfig, options: ServeOptions) -> ServersRows:
        """Of clients whose rows are as those of the configured data set."""
        source = load_dataset(config.dataset)
        check_tasks(source.tasks)
        kind, asked = parse_spec(source.task).name, check_task(options)
        if asked and kind != parse_spec(asked).name:
            raise ConfigError(
                f"FP1144 --task {options.task!r} is not what {source.name} holds, which is {kind}; name the labels of "
                "the clients' own rows, with --labels a,b,c or --label-column 'a + b', or leave --task out"
            )
        if kind not in TOLD:
            what = "pairs that are compared" if TASKS.build(source.task).compares else f"rows of {kind}"
            raise ConfigError(
                f"FP1501 {source.name} holds {what}; clients of a server join with texts, pairs of texts, "
                "conversations or pictures of classes, or with tagged words"
            )
        form = Clients(
            task=asked or source.task,
            text=options.text_column,
            label=options.label_column,
            side=_choose_side(source, options),
            template=_choose_template(source, config.dataset, options),
        )
        targets = TASKS.build(form.task).targets
        rows = (
            split_off_validation(source)[1]
            if options.eval_data
            else form.create_empty_rows(targets, source.label_names)
        )
        test = source.test if options.eval_data else None
        return cls._from_rows(source.name, form, source.label_names, rows, test, source.default_model)

    @classmethod
    def _from_rows(
        cls,
        name: str,
        form: Clients,
        names: tuple[str, ...] | None,
        rows: Rows,
        test: Rows | None = None,
        model: str | None = None,
    ) -> ServersRows:
        dataset = DescribedDataset(
            name=name,
            kind=form.kind,
            task=form.task,
            train=rows,
            test=rows if test is None else test,
            label_names=names,
            default_model=form.default_model if model is None else model,
        )
        return cls(dataset, rows, form)


def choose_form(config: RunConfig, options: ServeOptions) -> Clients | None:
    """The form of the clients' rows as `clients(...)` and the options tell it; None: that of the configured data set.

    Raises:
        ConfigError: options that contradict each other, or classes that nobody names.
        DataError: the prompt template can't be read.
    """
    of_data = DATASETS.build(config.dataset)
    told = of_data if isinstance(of_data, Clients) else None
    task = check_task(options)
    targets = TASKS.build(task).targets if task else "classes"
    least = 2 if targets == "classes" or task == TOKEN_LABELS else 1
    given = {
        "task": task,
        "labels": ",".join(parse_names(options.labels, least=least)) if options.labels else "",
        "text": options.text_column if options.text_column != TEXT else "",
        "label": options.label_column if options.label_column != LABEL else "",
        "side": options.side,
        "template": options.template,
    }
    given = {name: value for name, value in given.items() if value}
    tells_names = "labels" in given or targets == "numbers" or (targets == "labels" and AND in options.label_column)
    if told is None and (options.eval_data == OWN_TEST or not (tells_names or options.eval_data or _is_unnamed(task))):
        return None
    if told is not None and options.eval_data == OWN_TEST:
        raise ConfigError(
            "FP1146 clients(...) has no rows of the server's own; give --eval-data a file, or leave it out"
        )
    settings = {**(vars(told) if told else {}), **given}
    form = Clients(**check_settings("the form of the clients' rows", Clients, settings))
    if form.learns not in TOLD:
        raise ConfigError(
            f"FP1147 clients of a server can't join with rows of {form.learns!r}; legal are {', '.join(TOLD)}"
        )
    if form.template is not None and form.template.endswith(SUFFIX):
        read_template(form.template)  # before a model is loaded
    if not (form.names or options.eval_data or _is_unnamed(form.learns)):
        raise ConfigError(
            "FP1148 nobody names the classes of the clients' rows; give --labels a,b,c, or --eval-data FILE"
        )
    return form


def _is_unnamed(task: str) -> bool:
    """Whether a task needs no names."""
    return bool(task) and TOLD[parse_spec(task).name][1] == 0


def add_form(config: RunConfig, options: ServeOptions) -> RunConfig:
    """The settings with what the options tell of the clients' rows in place of a data set that nobody has asked for.

    Raises:
        ConfigError: options that contradict each other.
    """
    form = choose_form(config, options)
    if form is None:
        return config
    model = (config.model == "auto" and form.default_model) or config.model
    return dataclasses.replace(config, dataset=format_part(form), model=model)


def _choose_side(source: Dataset, options: ServeOptions) -> int:
    """Pixels per side of the pictures of a data set, or what is asked for; 0: it holds texts.

    Raises:
        ConfigError: it holds texts, and a side is asked for.
    """
    if source.kind == "image":
        own = min(np.asarray(source.train.inputs).shape[1:3])
        if options.side not in (0, own):
            raise ConfigError(
                f"FP1149 --side {options.side} is not that of the pictures of {source.name}, which is {own}; leave it "
                "out, or name the classes alone, with --labels a,b,c"
            )
        return int(own)
    if options.side:
        raise ConfigError(
            f"FP1150 --side {options.side} is of pictures, and {source.name} holds texts; name the classes of the "
            "clients' pictures, with --labels a,b,c"
        )
    return 0


def _choose_template(source: Dataset, dataset: str, options: ServeOptions) -> str | None:
    """What writes the conversations of a data set, or what is asked for; None: it holds none, or the model's own does.

    Raises:
        ConfigError: nobody says, and its rows are no conversations that the model's own template writes.
    """
    if parse_spec(source.task).name not in CONVERSATIONS:
        return options.template or None
    row = json.loads(str(source.test.inputs[0]))
    messages = isinstance(row.get("chosen") if isinstance(row, dict) and "chosen" in row else row, list)
    own = getattr(DATASETS.build(dataset), "template", None) or source.template or (CHAT if messages else "")
    if own and options.template not in ("", own):
        raise ConfigError(
            f"FP1151 --template {options.template} is not that of {source.name}, which is {own}: clients would write "
            "their rows otherwise than the server; leave it out"
        )
    if own or options.template:
        return str(own or options.template)
    raise ConfigError(
        f"FP1152 {source.name} holds prompts that were written by no template that it names, and clients must write "
        "theirs alike; give --template, such as --template alpaca"
    )

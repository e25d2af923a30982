"""What a server of real clients has of their task: the format of their examples, the labels, and its own examples."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.data.client_rows import LABEL, TEXT
from fedpeft.data.datasets.clients import CONVERSATIONS, Clients
from fedpeft.data.images import get_size
from fedpeft.data.images_with_texts import PATCH_LABELS
from fedpeft.data.label_columns import AND, parse_names
from fedpeft.data.prompt_templates import CHAT, SUFFIX, read_template
from fedpeft.data.rows import Dataset, Rows, Source, get_template, has_tasks, load_source, split_off_validation
from fedpeft.data.tagged_records import TASK as TOKEN_LABELS
from fedpeft.data.user_rows import DescribedDataset
from fedpeft.deployment.description import TOLD
from fedpeft.deployment.options import OWN_TEST, ServeOptions
from fedpeft.deployment.server.settings_checks import check_task, check_tasks
from fedpeft.errors import ConfigError
from fedpeft.models.abilities import ComparesExamples
from fedpeft.parts import check_settings, format_part
from fedpeft.parts.families import DATASETS, TASKS
from fedpeft.parts.spec import parse_spec
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import RunSpec

DESCRIBES = ("task", "labels", "eval_data", "label_column")
"""Options that describe clients' examples in place of the configured dataset."""


@dataclass(frozen=True, eq=False)
class ServersRows:
    """The clients' task, and the server's own examples for validation, perhaps none."""

    dataset: Dataset
    validation: Rows
    form: Clients

    @classmethod
    def load(cls, spec: RunSpec, options: ServeOptions) -> ServersRows:
        """Load the task and the examples that the options name.

        Raises:
            FedpeftError: class names or examples can't be used.
        """
        form = choose_form(spec.dataset, options)
        if form is None:
            return cls._from_dataset(spec, options)
        names, targets = form.names, TASKS.build(form.task).targets
        rows = form.create_empty_rows(targets, names)
        if options.eval_data:
            rows, known = form.read(Path(options.eval_data), names, targets)
            names = known or None
        return cls._from_rows("clients' own rows", form, names, rows)

    @classmethod
    def _from_dataset(cls, spec: RunSpec, options: ServeOptions) -> ServersRows:
        """Return the task and the server's examples for clients whose examples are like the configured dataset's."""
        source = load_source(spec.dataset, spec.config.dataset)
        check_tasks(source.tasks, options)
        kind, asked = parse_spec(source.task).name, check_task(options)
        if asked and kind != parse_spec(asked).name:
            raise ConfigError(
                f"FP1144 --task {options.task!r} does not fit the task of {source.name}, which is {kind}; name "
                "the labels of the clients' own examples, with --labels a,b,c or --label-column 'a + b', or "
                "leave --task out"
            )
        if kind not in TOLD:
            compares = isinstance(TASKS.build(source.task), ComparesExamples)
            what = "pairs that are compared" if compares else f"rows of {kind}"
            raise ConfigError(
                f"FP1501 {source.name} holds {what}; clients of a server join with texts, pairs of texts, "
                "conversations, tagged words, or images with classes, texts or masks"
            )
        form = Clients(
            task=asked or source.task,
            text=options.text_column,
            label=options.label_column,
            side=_choose_side(source, options),
            frames=_choose_frames(source, options),
            template=_choose_template(source, get_template(spec.dataset), options),
        )
        targets = TASKS.build(form.task).targets
        rows = (
            split_off_validation(source)[1]
            if options.eval_data
            else form.create_empty_rows(targets, source.label_names)
        )
        test = source.test if options.eval_data else None
        made = cls._from_rows(source.name, form, source.label_names, rows, test, source.default_model)
        return dataclasses.replace(made, dataset=dataclasses.replace(made.dataset, tasks=source.tasks))

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


@dataclass(frozen=True)
class DescribedForm:
    """The form of the clients' examples, as far as a server's options contain it.

    Attributes:
        settings: settings of `clients(...)` that the options give.
        complete: whether they describe the examples without a dataset.
    """

    settings: dict[str, Any]
    complete: bool

    @classmethod
    def from_options(cls, options: ServeOptions) -> DescribedForm:
        """Return the form in the options.

        Raises:
            ConfigError: the task is unknown, or there are too few names for it.
        """
        task = check_task(options)
        targets = TASKS.build(task).targets if task else "classes"
        least = 2 if targets == "classes" or task in (TOKEN_LABELS, PATCH_LABELS) else 1
        given = {
            "task": task,
            "labels": ",".join(parse_names(options.labels, least=least)) if options.labels else "",
            "text": options.text_column if options.text_column != TEXT else "",
            "label": options.label_column if options.label_column != LABEL else "",
            "side": options.side,
            "frames": options.frames,
            "template": options.template,
        }
        has_names = bool(
            given["labels"] or targets == "numbers" or (targets == "labels" and AND in options.label_column)
        )
        complete = has_names or bool(options.eval_data) or _is_unnamed(task)
        return cls({name: value for name, value in given.items() if value}, complete)


def choose_form(of_data: Source, options: ServeOptions) -> Clients | None:
    """Return the format of the clients' examples from `clients(...)` and the options; None: the dataset's own.

    Raises:
        ConfigError: options contradict each other, or no option names the classes.
        DataError: the prompt template can't be read.
    """
    described = DescribedForm.from_options(options)
    given = described.settings
    if isinstance(of_data, Clients):
        if options.eval_data == OWN_TEST:
            raise ConfigError(
                "FP1146 clients(...) has no examples that the server could use; give --eval-data a file, or leave it "
                "out"
            )
        given = vars(of_data) | given
    elif options.eval_data == OWN_TEST or not described.complete:
        return None
    elif has_tasks(of_data):
        told_by = next(f"--{name.replace('_', '-')}" for name in DESCRIBES if getattr(options, name))
        raise ConfigError(
            f"FP1837 {told_by} describes clients' examples of one task, and --dataset names tasks(...), whose "
            "datasets describe them; leave it out (to score the tasks, give --eval-data dataset)"
        )
    form = Clients(**check_settings("the form of the clients' rows", Clients, given))
    if form.learns not in TOLD:
        raise ConfigError(
            f"FP1147 clients of a server can't join with examples of {form.learns!r}; legal are {', '.join(TOLD)}"
        )
    if form.template is not None and form.template.endswith(SUFFIX):
        read_template(form.template)  # before a model is loaded
    if not (form.names or options.eval_data or _is_unnamed(form.learns)):
        raise ConfigError(
            "FP1148 the classes of the clients' examples have no names; give --labels a,b,c, or --eval-data FILE"
        )
    return form


def _is_unnamed(task: str) -> bool:
    """Return whether a task needs no names."""
    return bool(task) and TOLD[parse_spec(task).name][1] == 0


def add_form(config: RunConfig, options: ServeOptions) -> RunConfig:
    """Return the settings with `clients(...)` from the options in place of the default dataset.

    Raises:
        ConfigError: options contradict each other.
    """
    form = choose_form(DATASETS.build(config.dataset), options)
    if form is None:
        return config
    model = (config.model == "auto" and form.default_model) or config.model
    return dataclasses.replace(config, dataset=format_part(form), model=model)


def _choose_side(source: Dataset, options: ServeOptions) -> int:
    """Return the pixels per side of a dataset's pictures, or the number asked for; 0: it contains texts.

    Raises:
        ConfigError: the dataset contains texts, but a side is asked for, or its pictures have another one.
    """
    if source.kind != "text":
        own = min(get_size(np.asarray(source.train.inputs)))
        if options.side not in (0, own):
            raise ConfigError(
                f"FP1149 --side {options.side} differs from the image size of {source.name}, which is {own}; "
                "leave it out, or name the classes alone, with --labels a,b,c"
            )
        return int(own)
    if options.side:
        raise ConfigError(
            f"FP1150 --side {options.side} applies to images, and {source.name} contains texts; name the "
            "classes of the clients' images, with --labels a,b,c"
        )
    return 0


def _choose_frames(source: Dataset, options: ServeOptions) -> int:
    """Return the number of frames of a dataset's clips; 0: it contains none.

    Raises:
        ConfigError: another number is asked for.
    """
    own = int(np.shape(source.train.inputs)[1]) if source.kind == "clip" else 0
    if options.frames not in (0, own):
        raise ConfigError(
            f"FP1739 --frames {options.frames} differs from the frames of {source.name}, which are {own}; leave it "
            "out, or name the classes of the clients' clips, with --labels a,b,c"
        )
    return own


def _choose_template(source: Dataset, named: str | None, options: ServeOptions) -> str | None:
    """Return the template of a dataset's conversations, or the one asked for; None: it has none, or uses the model's.

    `named` is the template that the dataset's settings name.

    Raises:
        ConfigError: no template is given, and the model's own can't write these examples; or another one is given.
    """
    if parse_spec(source.task).name not in CONVERSATIONS:
        return options.template or None
    row = json.loads(str(source.test.inputs[0]))
    messages = isinstance(row.get("chosen") if isinstance(row, dict) and "chosen" in row else row, list)
    own = named or source.template or (CHAT if messages else "")
    if own and options.template not in ("", own):
        raise ConfigError(
            f"FP1151 --template {options.template} differs from the template of {source.name}, which is {own}, "
            "so clients and server would format examples differently; leave --template out"
        )
    if own or options.template:
        return str(own or options.template)
    raise ConfigError(
        f"FP1152 {source.name} contains prompts without naming their template, and all clients must use the same one; "
        "give --template, such as --template alpaca"
    )

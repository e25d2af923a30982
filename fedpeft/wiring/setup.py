"""The parts of a run that fit each other, the layout of its adapter and its start.

A setup knows its data as `DatasetInfo`. It does not depend on where clients run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fedpeft.aggregation.abilities import CountsClients
from fedpeft.aggregation.exactness import LARGEST_TARGET
from fedpeft.aggregation.head_start import VARIANCE, DescribesVariation, HeadStart, convert_to_summands
from fedpeft.aggregation.shared_sums import is_personal
from fedpeft.aggregation.task_rules import TaskRanks, TaskStrategy
from fedpeft.aggregation.update import check_made
from fedpeft.clients.local_training import Schedule
from fedpeft.communication.codec import Codec, parse_codec
from fedpeft.communication.payload import Shape
from fedpeft.communication.uplink import find_preset
from fedpeft.data import cached_rows
from fedpeft.data.rows import Rows
from fedpeft.data.task_sequence import TaskSequence
from fedpeft.errors import ConfigError
from fedpeft.machine import cache
from fedpeft.models.abilities import ComparesExamples, count_extra_tokens
from fedpeft.models.base_model import count_readable_tokens, resolve_model
from fedpeft.models.dtypes import DTYPES, get_adapter_dtype
from fedpeft.models.layers import get_innermost, unwrap
from fedpeft.models.quantized_base import quantize
from fedpeft.models.readout import get_width
from fedpeft.models.task import FederatedModel, Say, Task, ignore_message
from fedpeft.parts import format_part, name_of
from fedpeft.parts.families import PEFT_METHODS, TASKS
from fedpeft.parts.plugin_files import hash_own_code
from fedpeft.peft.abilities import ChangesWeights, SavedAsOther, ViewedAsFactors, WeightChanges
from fedpeft.peft.adapter import Layout, State
from fedpeft.peft.factor_view import FactorView
from fedpeft.peft.family import resize_method
from fedpeft.peft.method import PeftMethod, create_start
from fedpeft.privacy.exposure import trains_head_alone
from fedpeft.wiring.activation_cache import count_frozen_blocks
from fedpeft.wiring.auto_defaults import choose_drift, choose_method, resolve_auto
from fedpeft.wiring.checks.together import check
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.dataset_info import DatasetInfo
from fedpeft.wiring.profiles import AUTO, Profile, ProfileTable, choose_ranks, create_profiles, list_distinct
from fedpeft.wiring.run_spec import RunSpec
from fedpeft.wiring.training_control import TrainingControl, build_training_control


@dataclass(frozen=True)
class Setup(RunSpec):
    """The parts of a run, which fit each other; see also `RunSpec`.

    Attributes:
        method: the PEFT method at the size of the largest client.
        head: the start of the head.
        facts: what is known of the data.
        task: the task of the dataset.
        model_directory: folder of the frozen base.
        peft: the text of `method`.
        layout: the trainable tensors.
        start: the initial global state, which any machine can compute from the seed.
        profiles: one profile per client, in the order of ids.
        factor_view: how the strategy sees tensors that are not exchanged as factors; None: they are.
        weight_changes: the change of the base's weights by a state, if aggregation is not exact and its error is
            recorded; else None.
        parameters: number of entries of the base with the adapter.
        width: size of the base's hidden states.
        frozen_blocks: index of the lowest block with an adapter; 0 if a pass can't start there.
        readable: the most tokens of a text that the model reads, in whole steps of padding.
        notes: remarks about the base for the user.
        code: what identifies the user's own code that computes the base (`fedpeft.parts.plugin_files.hash_own_code`).
    """

    method: PeftMethod
    head: HeadStart
    facts: DatasetInfo
    task: Task
    model_directory: Path
    peft: str
    layout: Layout
    start: State
    profiles: Sequence[Profile]
    factor_view: FactorView | None
    weight_changes: WeightChanges | None
    parameters: int
    width: int
    frozen_blocks: int
    readable: int
    notes: tuple[str, ...]
    code: Mapping[str, str]

    @classmethod
    def create(cls, spec: RunSpec, facts: DatasetInfo, groups: Sequence[ProfileTable] = ()) -> Setup:
        """Return the setup of a run, checked.

        Args:
            spec: the settings, as `parse_run` returns them.
            facts: what is known of the data.
            groups: groups of clients that differ; none: all clients are alike.

        Raises:
            FedpeftError: settings that do not fit each other, the data or the model.
        """
        tasks = None if facts.tasks is None else facts.tasks.adapt_to_rounds(spec.config.rounds)
        facts = replace(facts, tasks=tasks)
        task: Task = TASKS.build(facts.task)
        if spec.method is None:
            spec = spec.change(peft=choose_method(spec, facts, groups))
        spec = _set_task_schedule(_set_client_count(resolve_auto(spec, task.targets), facts.clients), tasks)
        assert spec.method is not None
        assert spec.head is not None
        groups = choose_ranks(groups, spec.method.form) if spec.config.ranks == AUTO else groups
        profiles = create_profiles(groups, facts.clients, spec.method.form)
        forms = [profile.form for profile in list_distinct(profiles)]
        rule = spec.strategy
        whole = map(rule.get_whole_form, forms) if isinstance(rule, TaskRanks) else ()
        peft = resize_method(spec.config.peft, spec.method, [*forms, *whole])
        method = spec.method if peft == spec.config.peft else PEFT_METHODS.build(peft)
        head = spec.head.fit_to_targets(task.targets) if task.targets in ("numbers", "labels") else spec.head
        model_directory = resolve_model(facts.default_model if spec.config.model == "auto" else spec.config.model)
        notes: list[str] = []
        reference = load_adapted_model(task, model_directory, method, spec.config.dtype, facts.classes, notes.append)
        task.check(reference)
        layout: Layout = method.layout(reference)
        if spec.config.drift == "auto":
            protected = spec.mechanism is not None or spec.secure_sum is not None
            spec = spec.change(drift="" if protected else choose_drift(spec.strategy, head, facts, layout))
        config, plain_base = spec.config, unwrap(reference.base)
        before = method.extra_tokens + count_extra_tokens(task)
        setup = cls(
            **{**vars(spec), "method": method, "head": head},
            facts=facts,
            task=task,
            model_directory=model_directory,
            peft=peft,
            layout=layout,
            start=_start(method, reference, config),
            profiles=profiles,
            factor_view=method.create_factor_view(layout) if isinstance(method, ViewedAsFactors) else None,
            weight_changes=_get_weight_changes(method, reference, layout),
            parameters=sum(p.numel() for p in reference.parameters()),
            width=get_width(plain_base),
            frozen_blocks=count_frozen_blocks(plain_base, layout, facts.kind, task),
            readable=count_readable_tokens(model_directory, before, config.tokens),
            notes=tuple(notes),
            code=hash_own_code(type(task), type(plain_base), *([type(method)] if method.base_as_read() else [])),
        )
        check(setup)
        start = setup.strategy.start(setup.start, layout, config.seed)
        check_made(setup.strategy, start, setup.start, setup.start)
        return replace(setup, start=start)

    @property
    def rounds(self) -> int:
        """Number of rounds of the run."""
        return self.config.rounds

    @property
    def schedule(self) -> Schedule:
        """Schedule of the clients' learning rate."""
        own, tasks = self.training.optimizer, self.facts.tasks
        rounds = self.config.rounds if tasks is None else tasks.schedule.every  # each task has its own
        return Schedule(self.config.learning_rate, rounds, own.schedule, own.floor, repeats=tasks is not None)

    @property
    def is_protected(self) -> bool:
        """Whether the run has a privacy mechanism or a secure sum."""
        return self.mechanism is not None or self.secure_sum is not None

    @property
    def has_private_start(self) -> bool:
        """Whether the head starts from a noisy release of the clients' rows."""
        return self.is_private and self.head.exchanges and "head.weight" in self.start

    @property
    def whitened_directions(self) -> int:
        """Number of directions in which the start of a head that is trained alone measures the features' variance."""
        alone = self.has_private_start and trains_head_alone(self.strategy, self.layout)
        if not alone or not isinstance(self.head, DescribesVariation):
            return 0
        return self.head.whitened_directions(self.layout.shapes["head.weight"][1])

    @property
    def by_rows(self) -> bool:
        """Whether a client's weight is its number of rows; under privacy all are alike."""
        return self.mechanism is None and self.strategy.weighting != "uniform"

    @cached_property
    def trained_entries(self) -> tuple[int, int]:
        """Entries that clients train and hand in, in the rounds with the fewest and with the most of them."""
        own = self.strategy.list_private(self.layout)
        names = [self.strategy.list_trained(self.layout, round_number) - own for round_number in range(1, 5)]
        sizes = [sum(t.numel for t in self.layout.tensors if t.name in some) for some in names]
        return min(sizes), max(sizes)

    @property
    def predictions(self) -> int:
        """Most predictions of a row: one, or one for each of its labels or tokens."""
        if self.task.targets == "labels":
            return self.facts.classes
        return 1 if self.task.targets or isinstance(self.task, ComparesExamples) else self.tokens

    @property
    def clients(self) -> int:
        """Number of clients."""
        return self.facts.clients

    @property
    def tokens(self) -> int:
        """Tokens that texts are cut to: the user's number, and at most what the model reads."""
        return min(self.config.tokens, self.readable)

    @cached_property
    def training_control(self) -> TrainingControl:
        """The decisions that validation examples make.

        Raises:
            ConfigError, PrivacyError: they can't decide, or must not.
        """
        tasks = self.facts.tasks is not None
        return build_training_control(self, self.personal, self.facts.judged, tasks)

    @property
    def model_name(self) -> str:
        """Name of the base model: the user's, or the dataset's default."""
        return self.facts.default_model if self.config.model == "auto" else self.config.model

    @cached_property
    def personal(self) -> bool:
        """Whether clients' models differ: tensors, or models, stay with them, or groups are sent their own."""
        return is_personal(self.strategy, self.layout)

    @property
    def base_precisions(self) -> tuple[str, ...]:
        """Precisions of clients' bases, other than the run's own."""
        given = dict.fromkeys(profile.base for profile in list_distinct(self.profiles))
        return tuple(base for base in given if base not in ("", self.config.dtype))

    @property
    def statistics(self) -> Codec:
        """The codec of what clients send before round 1."""
        if self.uplink.codec.lossless:
            return self.lossless
        return parse_codec(self.head.codec(find_preset(self.config.codec)))

    @property
    def statistics_shapes(self) -> dict[str, Shape]:
        """Shapes of the statistics that the head's start sums over clients, by name."""
        outputs, width = self.start["head.weight"].shape
        sent = self.head.shapes(width, outputs, 1)
        sums = convert_to_summands(self.head, {name: torch.zeros(shape) for name, shape in sent.items()})
        return {name: tuple(tensor.shape) for name, tensor in sums.items()}

    @property
    def noised_shapes(self) -> dict[str, Shape]:
        """Shapes of the statistics that receive noise before round 1, by name."""
        return {name: shape for name, shape in self.statistics_shapes.items() if name != VARIANCE}

    @property
    def saved_peft(self) -> str:
        """The text of the PEFT method of the finished adapter, as it is saved."""
        return self.method.saved_as if isinstance(self.method, SavedAsOther) else self.peft

    @cached_property
    def saved_method(self) -> PeftMethod:
        """The PEFT method of the finished adapter, as it is saved."""
        return PEFT_METHODS.build(self.saved_peft) if isinstance(self.method, SavedAsOther) else self.method

    def model(self, say: Say = ignore_message) -> FederatedModel:
        """Return the base with a fresh adapter, in the run's precision."""
        return load_adapted_model(
            self.task, self.model_directory, self.method, self.config.dtype, self.facts.classes, say
        )

    def tokenize_rows(self, rows: Rows, tokens: int) -> str:
        """Return the cache key of `rows` as model input of at most `tokens` tokens; tokenize rows that it lacks."""
        key = cache.compute_key(
            rows=cached_rows.hash_rows(rows),
            tokenizer=cache.hash_files(self.model_directory, cached_rows.TOKENIZER_FILES),
            tokens=tokens,
            task=self.facts.task,
            **({} if self.task.encodes else {"cut": "counted"}),
            **hash_own_code(type(self.task)),
            **cached_rows.read_as(rows.inputs),
        )
        cache.load_arrays(
            "rows", key, lambda: cached_rows.convert_to_arrays(self.task.tokenise(rows, self.model_directory, tokens))
        )
        return key

    def cut_rows(self, data_key: str) -> list[str]:
        """Return a note about the rows called `data_key` that a language model does not read whole; empty: none."""
        examples = cached_rows.load_cached_examples(data_key)
        cut = getattr(examples, "cut", 0)
        if not cut:
            return []
        return [
            f"{cut:,} of {len(examples):,} examples are longer than {self.tokens} tokens and truncated; see --tokens"
        ]


def load_adapted_model(
    task: Task, directory: Path, method: PeftMethod, dtype: str, classes: int, say: Say = ignore_message
) -> FederatedModel:
    """Return the base in `directory` with a fresh adapter."""
    base = task.base(directory, DTYPES[dtype], say)
    quantize(base, method.base_precision)
    model = task.model(base, classes)
    method.attach(model, dtype)
    return model


def count_adapted_entries(model: FederatedModel, layout: Layout) -> int:
    """Return the number of entries of all weights that an adapter changes."""
    plain = unwrap(model.base)
    modules = {t.module for t in layout.tensors if t.role != "head"}
    layers: list[Any] = [get_innermost(plain.get_submodule(module)) for module in modules]
    return sum(layer.in_features * layer.out_features for layer in layers)


def _start(method: PeftMethod, reference: FederatedModel, config: RunConfig) -> State:
    """Return the initial state, before the strategy changes it."""
    start, dtype = create_start(method, reference, config.seed), get_adapter_dtype(config.dtype)
    return {name: tensor.to(dtype) for name, tensor in start.items()}


def _get_weight_changes(method: PeftMethod, reference: FederatedModel, layout: Layout) -> WeightChanges | None:
    """Return how a state changes the base's weights; None: they are too many to record the error."""
    changes = method.weight_changes(reference) if isinstance(method, ChangesWeights) else None
    if changes and count_adapted_entries(reference, layout) > LARGEST_TARGET:
        return None
    return changes


def _set_client_count(spec: RunSpec, clients: int) -> RunSpec:
    """Return the run with the number of clients in its strategy, if the strategy counts them.

    Raises:
        ConfigError: the strategy names another number.
    """
    if not isinstance(spec.strategy, CountsClients):
        return spec
    return spec.change(strategy=format_part(spec.strategy.set_client_count(clients)))


def _set_task_schedule(spec: RunSpec, tasks: TaskSequence | None) -> RunSpec:
    """Return the run with the schedule of its tasks in its strategy, if the strategy goes by tasks.

    Raises:
        ConfigError: the strategy needs tasks and there are none, or it names another schedule.
    """
    strategy = spec.strategy
    if not isinstance(strategy, TaskStrategy):
        return spec
    if tasks is None:
        raise ConfigError(
            f"FP1295 {name_of(type(strategy))} is for continual learning, so it needs tasks that arrive one "
            "after another; give --dataset 'tasks(a, b)' or 'tasks(a, classes=2)', or choose another strategy"
        )
    schedule: dict[str, Any] = {
        "tasks": tasks.schedule.tasks,
        "every": tasks.schedule.every,
        "late": tasks.schedule.late,
    }
    for setting, value in schedule.items():
        given = getattr(strategy, setting)
        if given not in (0, value):
            raise ConfigError(
                f"FP1296 {spec.config.strategy} names {setting}={given}, but the dataset has {value}; leave "
                f"{setting} out"
            )
    return spec.change(strategy=format_part(replace(strategy, **schedule)))

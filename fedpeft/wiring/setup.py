"""What a configuration makes, wherever clients are: parts, layout, start.

This is the only place where a configuration's texts become objects. Which rows there are, and whose, it is told as
`DatasetInfo`; on what is computed, it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.aggregation.abilities import is_personal
from fedpeft.aggregation.exactness import LARGEST_TARGET
from fedpeft.aggregation.head_start import HeadStart
from fedpeft.aggregation.server_optimizer import ServerOptimizer
from fedpeft.aggregation.strategy import Strategy
from fedpeft.aggregation.task_rules import TaskRanks
from fedpeft.aggregation.update import check_made
from fedpeft.clients.drift import Drift
from fedpeft.clients.local_training import LocalTraining, Schedule
from fedpeft.communication.codec import Codec
from fedpeft.communication.downlink import parse_downlink
from fedpeft.communication.uplink import Uplink, find_preset, parse_uplink
from fedpeft.config import RunConfig
from fedpeft.data import cached_rows
from fedpeft.data.rows import Rows
from fedpeft.machine import cache
from fedpeft.models.base_model import count_readable_tokens, resolve_model
from fedpeft.models.layers import get_innermost, unwrap
from fedpeft.models.loading import Say, ignore_message
from fedpeft.models.quantized import quantize
from fedpeft.models.readout import get_width
from fedpeft.models.task import DTYPES, TASKS, FederatedModel, Task, get_adapter_dtype
from fedpeft.peft.adapter import Layout, State
from fedpeft.peft.factor_view import Factoring
from fedpeft.peft.family import PEFT_METHODS, resize_method
from fedpeft.peft.method import PeftMethod, WeightChanges, create_start
from fedpeft.plugin_files import hash_own_code
from fedpeft.privacy.exposure import trains_head_alone
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.secure_sum.sum import SecureSum, sums_under
from fedpeft.wiring.activation_cache import count_frozen_blocks
from fedpeft.wiring.auto_defaults import (
    choose_drift,
    choose_method,
    set_client_count,
    set_task_schedule,
    settle_config,
)
from fedpeft.wiring.catalogue import build_part
from fedpeft.wiring.checks.together import check
from fedpeft.wiring.dataset_info import DatasetInfo
from fedpeft.wiring.grid import SimulationGrid
from fedpeft.wiring.measurements import Measurements
from fedpeft.wiring.profiles import AUTO, Profile, ProfileTable, choose_ranks, create_profiles, list_distinct
from fedpeft.wiring.training_control import TrainingControl, build_training_control

if TYPE_CHECKING:
    from fedpeft.rounds.user_hook import UserHook


@dataclass(frozen=True)
class ChosenParts:
    """The parts that texts of the configuration describe by themselves, whatever the data are; see `Setup`."""

    strategy: Strategy
    optimizer: ServerOptimizer
    uplink: Uplink
    downlink: Codec
    lossless: str
    head: HeadStart
    training: LocalTraining
    drift: Drift
    mechanism: Mechanism | None
    secure_sum: SecureSum | None
    grid: SimulationGrid
    measured: Measurements
    hooks: tuple[UserHook, ...]


def choose_parts(config: RunConfig) -> ChosenParts:
    """The parts of settled settings.

    Raises:
        FedpeftError: a text that describes no part.
    """
    lossless = "fp64" if config.dtype == "fp64" else "fp32"
    uplink = parse_uplink(lossless if config.codec == "fp32" else config.codec)
    head: HeadStart = build_part(config, "head")
    private: Mechanism | SecureSum | None = build_part(config, "privacy")
    return ChosenParts(
        training=build_local_training(config),
        optimizer=build_part(config, "server_optimizer"),
        strategy=build_part(config, "strategy"),
        drift=build_part(config, "drift"),
        grid=build_part(config, "grid"),
        measured=build_part(config, "measure"),
        hooks=build_part(config, "hook"),
        uplink=uplink,
        downlink=parse_downlink(config.downlink, config.codec, lossless),
        lossless=lossless,
        head=head if uplink.codec.lossless else head.compact(),
        mechanism=private if isinstance(private, Mechanism) else None,
        secure_sum=sums_under(private),
    )


@dataclass(frozen=True)
class Setup(ChosenParts):
    """The parts of a run, which go together.

    Attributes:
        config: the settings; its dtype is never `auto`.
        facts: of the data.
        task, model_directory: what is learned, and the folder of the frozen base.
        peft, method: the PEFT method of the largest form, as text and as a part.
        layout: of the trainable tensors.
        start: the initial global state, which anybody can make from the seed.
        strategy, optimizer: how the server aggregates, and what it does with the mean update.
        uplink, downlink: how updates are encoded, and how the model is.
        lossless: the codec of everything else, "fp32" or "fp64".
        head: how the head starts.
        training: local training.
        drift: what is done about clients that drift apart.
        mechanism: of privacy; None: no protection.
        secure_sum: how updates are added up where nobody may see one; None: the server sees each.
        grid: where simulated clients run.
        measured: what is found out beside the end.
        hooks: features of a user's own in the round loop.
        profiles: of each client, in the order of ids.
        factor_view: how the strategy sees the tensors, where they are not exchanged as factors.
        weight_changes: what a state changes in the base's weights, where aggregation is not exact and its error is
            recorded.
        parameters: of the base with the adapter, all of them.
        width: of the base's hidden states.
        frozen_blocks: index of the lowest block with an adapter; 0 also where a pass can't start there.
        readable: the most tokens of a text that the model reads, in whole steps of padding.
        notes: what loading the base has given occasion to say.
        code: what tells the user's own code that the base is computed by (`fedpeft.plugin_files.hash_own_code`).
    """

    config: RunConfig
    facts: DatasetInfo
    task: Task
    model_directory: Path
    peft: str
    method: PeftMethod
    layout: Layout
    start: State
    profiles: Sequence[Profile]
    factor_view: Factoring | None
    weight_changes: WeightChanges | None
    parameters: int
    width: int
    frozen_blocks: int
    readable: int
    notes: tuple[str, ...]
    code: Mapping[str, str]

    @classmethod
    def create(cls, config: RunConfig, facts: DatasetInfo, groups: Sequence[ProfileTable] = ()) -> Setup:
        """The setup of a configuration, checked.

        Args:
            config: checked settings.
            facts: of the data.
            groups: of clients that differ; none: all are alike.

        Raises:
            FedpeftError: settings that do not fit each other, the data or the model.
        """
        tasks = None if facts.tasks is None else facts.tasks.adapt_to_rounds(config.rounds)
        facts = replace(facts, tasks=tasks)
        task: Task = TASKS.build(facts.task)
        if config.peft == "auto":
            config = replace(config, peft=choose_method(config, facts, groups))
        config = set_task_schedule(set_client_count(settle_config(config, task.targets), facts.clients), tasks)
        given: PeftMethod = build_part(config, "peft")
        groups = choose_ranks(groups, given.form) if config.ranks == AUTO else groups
        profiles = create_profiles(groups, facts.clients, given.form)
        chosen = choose_parts(config)
        forms = [profile.form for profile in list_distinct(profiles)]
        rule = chosen.strategy
        whole = map(rule.get_whole_form, forms) if isinstance(rule, TaskRanks) else ()
        peft = resize_method(config.peft, given, [*forms, *whole])
        method = PEFT_METHODS.build(peft)
        if task.targets in ("numbers", "labels"):
            chosen = replace(chosen, head=chosen.head.fit_to_targets(task.targets))
        model_directory = resolve_model(facts.default_model if config.model == "auto" else config.model)
        notes: list[str] = []
        reference = load_adapted_model(task, model_directory, method, config.dtype, facts.classes, notes.append)
        task.check(reference)
        layout: Layout = method.layout(reference)
        if config.drift == "auto":
            protected = chosen.mechanism is not None or chosen.secure_sum is not None
            drift = "" if protected else choose_drift(chosen.strategy, chosen.head, facts, layout)
            config = replace(config, drift=drift)
            chosen = replace(chosen, drift=build_part(config, "drift"))
        plain_base = unwrap(reference.base)
        setup = cls(
            **vars(chosen),
            config=config,
            facts=facts,
            task=task,
            model_directory=model_directory,
            peft=peft,
            method=method,
            layout=layout,
            start=_start(method, reference, config),
            profiles=profiles,
            factor_view=method.factoring(layout),
            weight_changes=_get_weight_changes(method, reference, layout),
            parameters=sum(p.numel() for p in reference.parameters()),
            width=get_width(plain_base),
            frozen_blocks=count_frozen_blocks(plain_base, layout, facts.kind, task),
            readable=count_readable_tokens(model_directory, method.extra_tokens + task.extra_tokens, config.tokens),
            notes=tuple(notes),
            code=hash_own_code(type(task), type(plain_base), *([type(method)] if method.base_as_read() else [])),
        )
        check(setup)
        start = setup.strategy.start(setup.start, layout, config.seed)
        check_made(setup.strategy, start, setup.start, setup.start)
        return replace(setup, start=start)

    @property
    def rounds(self) -> int:
        """Of the run."""
        return self.config.rounds

    @property
    def schedule(self) -> Schedule:
        """Of the clients' learning rate."""
        own, tasks = self.training.optimizer, self.facts.tasks
        rounds = self.config.rounds if tasks is None else tasks.schedule.every  # each task has its own
        return Schedule(self.config.learning_rate, rounds, own.schedule, own.floor, repeats=tasks is not None)

    @property
    def protected(self) -> bool:
        """Whether the run has a privacy mechanism or a secure sum."""
        return self.mechanism is not None or self.secure_sum is not None

    @property
    def has_private_start(self) -> bool:
        """Whether the head starts from a noisy release of the clients' rows."""
        protected = self.mechanism is not None and self.mechanism.protects
        return protected and self.head.exchanges and "head.weight" in self.start

    @property
    def whitened_directions(self) -> int:
        """In how many directions the start of a head that is trained alone, and whole, tells how features vary."""
        alone = self.has_private_start and trains_head_alone(self.strategy, self.layout)
        return self.head.whitened_directions(self.layout.shapes["head.weight"][1]) if alone else 0

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
        """The most that a row can have: one, or one for each of its labels or tokens."""
        if self.task.targets == "labels":
            return self.facts.classes
        return 1 if self.task.targets or self.task.compares else self.tokens

    @property
    def clients(self) -> int:
        """How many there are."""
        return self.facts.clients

    @property
    def tokens(self) -> int:
        """Texts are cut to this many tokens: what the user asks for, and no more than the model reads."""
        return min(self.config.tokens, self.readable)

    @cached_property
    def training_control(self) -> TrainingControl:
        """What validation rows decide.

        Raises:
            ConfigError, PrivacyError: they can't, or must not.
        """
        private = self.mechanism is not None and self.mechanism.protects
        stays = private and self.mechanism is not None and not self.mechanism.per_example
        config, validation, tasks = self.config, self.measured.validation, self.facts.tasks is not None
        return build_training_control(config, validation, private, self.personal, self.facts.judged, tasks, stays)

    @property
    def model_name(self) -> str:
        """The base as the user, or the data set, calls it."""
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
    def statistics(self) -> str:
        """The codec of what is sent before round 1."""
        return self.lossless if self.uplink.codec.lossless else self.head.codec(find_preset(self.config.codec))

    @property
    def saved_peft(self) -> str:
        """The PEFT method of the finished adapter, as it is saved."""
        return self.method.saved_as or self.peft

    def model(self, say: Say = ignore_message) -> FederatedModel:
        """The base with a fresh adapter, in the run's precision."""
        return load_adapted_model(
            self.task, self.model_directory, self.method, self.config.dtype, self.facts.classes, say
        )

    def tokenize_rows(self, rows: Rows, tokens: int) -> str:
        """The cache's name for `rows` as model input of at most `tokens` tokens; tokenised where it is missing."""
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
        """What is to be said of the rows called `data_key` that are longer than a language model is given."""
        examples = cached_rows.load_cached_examples(data_key)
        cut = getattr(examples, "cut", 0)
        if not cut:
            return []
        return [f"{cut:,} of {len(examples):,} rows are longer than {self.tokens} tokens and cut there; see --tokens"]


def load_adapted_model(
    task: Task, directory: Path, method: PeftMethod, dtype: str, classes: int, say: Say = ignore_message
) -> FederatedModel:
    """The base in `directory` with a fresh adapter."""
    base = task.base(directory, DTYPES[dtype], say)
    quantize(base, method.base_precision)
    model = task.model(base, classes)
    method.attach(model, dtype)
    return model


def count_adapted_entries(model: FederatedModel, layout: Layout) -> int:
    """Entries of all weights that an adapter changes."""
    plain = unwrap(model.base)
    modules = {t.module for t in layout.tensors if t.role != "head"}
    layers: list[Any] = [get_innermost(plain.get_submodule(module)) for module in modules]
    return sum(layer.in_features * layer.out_features for layer in layers)


def _start(method: PeftMethod, reference: FederatedModel, config: RunConfig) -> State:
    """The initial state, before the strategy has seen it."""
    start, dtype = create_start(method, reference, config.seed), get_adapter_dtype(config.dtype)
    return {name: tensor.to(dtype) for name, tensor in start.items()}


def _get_weight_changes(method: PeftMethod, reference: FederatedModel, layout: Layout) -> WeightChanges | None:
    """How a state changes the base's weights, where there are not too many of them to record it."""
    changes = method.weight_changes(reference)
    if changes and count_adapted_entries(reference, layout) > LARGEST_TARGET:
        return None
    return changes


def build_local_training(config: RunConfig) -> LocalTraining:
    """Local training as a configuration describes it.

    Raises:
        ConfigError: unknown amount of work, optimizer or setting.
    """
    return LocalTraining(
        config.batch_size, build_part(config, "local_work"), config.learning_rate, build_part(config, "optimizer")
    )

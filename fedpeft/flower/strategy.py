"""A user's own Flower strategy as a strategy of fedpeft: `wrap_strategy(MyStrategy)`.

    # my_parts.py
    from fedpeft.flower.strategy import wrap_strategy
    from my_package import MyStrategy

    parts = {"strategies": {"my_rule": wrap_strategy(MyStrategy)}}

    fedpeft simulate --plugin my_parts.py --strategy "my_rule(eta=0.1)"

    x <- rule(x, x_1, ..., x_K),   x_k = received_k + delta_k: float arrays with the same keys at all clients

Only the aggregating methods of the class are used: `configure_train` and `aggregate_train`, or `configure_fit` and
`aggregate_fit`. Arguments of its `__init__` that are numbers, texts or truth values become settings. What it keeps
between rounds is in the checkpoint (`fedpeft.flower.strategy_checkpoint`). Unsupported features are refused by name,
before the first round if possible. The strategy sees factors, not what these do to the weights
(`fedpeft.strategies.flower`).
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import random
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import torch
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.server.strategy import Strategy as OlderStrategy
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import Strategy as MessageStrategy

from fedpeft.aggregation.server_optimizer import OptimizerState
from fedpeft.aggregation.strategy import Aggregate, Read, RoundStrategy
from fedpeft.errors import ConfigError, RunError
from fedpeft.flower.strategy_checkpoint import pickle_unsaved, restore_values, save_values
from fedpeft.flower.their_calls import (
    Arrays,
    TrainedArrays,
    aggregate_arrays,
    ask_strategy,
    convert_to_parameters,
    initialize_strategy,
    raise_as_rule_error,
)
from fedpeft.machine import seeds
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, State

PLAIN: Final = (bool, int, float, str)
"""Types of arguments that a text can hold."""

LABEL: Final = "flower"
"""Name of the strategy's values in the optimizer state of a checkpoint."""

EVERYBODY: Final[Mapping[str, float | int]] = {
    **dict.fromkeys(("fraction_train", "fraction_fit"), 1.0),
    **dict.fromkeys(("min_train_nodes", "min_fit_clients", "min_available_nodes", "min_available_clients"), 1),
    **dict.fromkeys(("fraction_evaluate",), 1.0),
    **dict.fromkeys(("min_evaluate_nodes", "min_evaluate_clients"), 1),
}
"""Arguments of Flower's strategies that choose clients, with their values here: all clients of a cohort."""

SETTLED: Final[Mapping[str, str]] = {
    **dict.fromkeys(EVERYBODY, "--cohort decides who trains in a round, and --measure who evaluates"),
    "eta_l": "--learning-rate sets the clients' learning rate",
    "initial_parameters": "a federation starts from its base model, its PEFT method and its --head",
}

UNCALLED: Final = ("configure_evaluate", "aggregate_evaluate", "evaluate")
"""Methods that are never called, although a class may have them: `--measure` sets the evaluation."""

PROBED: Final = tuple(range(100))
"""Client ids of the cohort that a strategy is tested with before the first round."""

QUIET: Final = "flwr"
"""Name of Flower's logger: its strategies announce each call."""


@dataclass(frozen=True, kw_only=True)
class FlowerRule(RoundStrategy):
    """A Flower strategy, created anew in each round from its settings and what it has kept."""

    needs_lora: ClassVar[bool] = False
    settled_elsewhere: ClassVar[Mapping[str, str]] = SETTLED
    flower_class: ClassVar[type]
    fixed: ClassVar[Mapping[str, Any]] = {}
    names: ClassVar[tuple[str, ...]] = ()

    def start(self, state: State, layout: Layout, seed: int) -> State:
        """Return the PEFT method's own start, after a test of what the strategy would send.

        Raises:
            ConfigError: the strategy can't be created, or does something that is not supported here.
        """
        arrays = _convert_to_arrays(state, tuple(sorted(self.list_trained(layout, 1))))
        try:
            with _seed_generators(seed, 0), _silence_flower():
                rule = self._create_strategy(arrays, seed)
                if not initialize_strategy(rule, arrays, PROBED):
                    raise ConfigError(
                        f"FP1182 {self.flower_class.__name__}.initialize_parameters returns parameters, but a "
                        "federation starts from its base model, its PEFT method and its --head; return None"
                    )
                ask_strategy(rule, 1, arrays, PROBED)
        except RunError as error:
            raise ConfigError(str(error)) from error
        return state

    def aggregate(self, state: State, layout: Layout, read: Read, round_number: int, seed: int) -> Aggregate:
        """Return the aggregate of the first round, in which the strategy has kept nothing yet."""
        return self.aggregate_with_memory(state, layout, read, round_number, seed, {})[0]

    def aggregate_with_memory(
        self, state: State, layout: Layout, read: Read, round_number: int, seed: int, memory: OptimizerState
    ) -> tuple[Aggregate, OptimizerState]:
        """Return the strategy's arrays in place of the trained tensors; the whole cohort is in memory.

        Raises:
            ConfigError: there are no updates.
            RunError: the strategy fails, or returns something other than the next state.
        """
        names = tuple(sorted(self.list_trained(layout, round_number)))
        updates = read(names)
        if not len(updates):
            raise ConfigError(
                f"FP1502 {self.flower_class.__name__} needs at least one update to aggregate, and got none"
            )
        arrays = _convert_to_arrays(state, names)
        cohort = [
            TrainedArrays(u.client, _convert_to_arrays({n: u.get_trained(n) for n in names}, names), u.weight)
            for u in updates
        ]
        with _silence_flower():
            rule = self._create_strategy(arrays, seed)
            with _seed_generators(seed, 0):
                initialize_strategy(rule, arrays, [trained.client for trained in cohort])
            if LABEL in memory:
                vars(rule).update(restore_values(memory[LABEL]))
            strange = pickle_unsaved(vars(rule))
            with _seed_generators(seed, round_number):
                ask_strategy(rule, round_number, arrays, [trained.client for trained in cohort])
                found = aggregate_arrays(rule, round_number, arrays, cohort)
        after = {name: tensor.clone() for name, tensor in state.items()}
        after |= {name: torch.from_numpy(found[name]).to(state[name].dtype) for name in names}
        return Aggregate(after, {}), {LABEL: save_values(vars(rule), strange, self.flower_class.__name__)}

    def _create_strategy(self, arrays: Arrays, seed: int) -> Any:
        """Return the strategy, in the state in which its `__init__` leaves it.

        Raises:
            RunError: its `__init__` has failed.
        """
        given: dict[str, Any] = {name: getattr(self, name) for name in self.names} | dict(self.fixed)
        takes = _find_arguments(self.flower_class)
        given |= {name: value for name, value in EVERYBODY.items() if name in takes and name not in given}
        if "initial_parameters" in takes and "initial_parameters" not in given:
            given["initial_parameters"] = convert_to_parameters(arrays)
        with raise_as_rule_error(f"{self.flower_class.__name__}.__init__", 0), _seed_generators(seed, 0):
            return self.flower_class(**given)


def wrap_strategy(flower_class: type, **fixed: Any) -> type[FlowerRule]:
    """Return a part that wraps the class of a Flower strategy.

    Args:
        flower_class: subclass of `flwr.serverapp.strategy.Strategy` or `flwr.server.strategy.Strategy`.
        fixed: arguments of its `__init__` that no text can hold, such as functions.

    Raises:
        ConfigError: it is not such a class, or needs what it can't have here.
    """
    _check_class(flower_class)
    name, takes = flower_class.__name__, _find_arguments(flower_class)
    fields: list[tuple[str, Any, Any]] = []
    for argument, parameter in takes.items():
        if argument in fixed or argument in SETTLED:
            continue
        plain = _find_plain_type(flower_class, parameter)
        if plain is None and parameter.default is parameter.empty:
            raise ConfigError(
                f"FP1184 {name} needs the argument {argument}, which a text can't express; write "
                f"wrap_strategy({name}, {argument}=...)"
            )
        if plain is None:
            continue
        if hasattr(FlowerRule, argument) or argument in {f.name for f in dataclasses.fields(FlowerRule)}:
            raise ConfigError(
                f"FP1185 {name} has an argument {argument}, which has another meaning for a strategy here; rename it, "
                f"or write wrap_strategy({name}, {argument}=...)"
            )
        default = dataclasses.MISSING if parameter.default is parameter.empty else parameter.default
        fields.append((argument, plain, setting(default, f"of {name}.__init__")))
    if unknown := sorted(fixed.keys() - takes.keys()):
        raise ConfigError(f"FP1186 {name}.__init__ takes no {', '.join(unknown)}; it takes {', '.join(takes)}")
    made = dataclasses.make_dataclass(
        name, fields, bases=(FlowerRule,), frozen=True, kw_only=True, namespace={"__doc__": _describe(flower_class)}
    )
    made.__module__ = flower_class.__module__
    for attribute, value in (
        ("flower_class", flower_class),
        ("fixed", dict(fixed)),
        ("names", tuple(argument for argument, *_ in fields)),
    ):
        setattr(made, attribute, value)
    return made


def _describe(flower_class: type) -> str:
    """Return the text that `describe` prints."""
    module = flower_class.__module__
    place = f"{module}." if module.startswith("flwr.") else ""  # a plugin's module name is arbitrary
    first = (inspect.getdoc(flower_class) or f"{flower_class.__name__}.").splitlines()[0]
    return f"{first}\n\nA strategy of Flower's, {place}{flower_class.__name__}. Not called here: {', '.join(UNCALLED)}."


def _check_class(flower_class: Any) -> None:
    """Refuse classes other than strategies, and strategies that would not do here what they promise.

    Raises:
        ConfigError: names the class, and a remedy.
    """
    shown = getattr(flower_class, "__name__", type(flower_class).__name__)
    kinds = flower_class.__mro__ if isinstance(flower_class, type) else type(flower_class).__mro__
    if {ClientApp, Client, NumPyClient} & set(kinds):
        raise ConfigError(
            f"FP1187 {shown} is a Flower client, which fedpeft can't run, because privacy, codecs and resuming "
            "depend on its own client code; a script with a Trainer can join with fedpeft.patch(trainer, "
            "server=...)"
        )
    if ServerApp in kinds:
        raise ConfigError(
            f"FP1188 {shown} is a ServerApp, but fedpeft runs the rounds itself; wrap the class of its strategy"
        )
    if not isinstance(flower_class, type) or not issubclass(flower_class, MessageStrategy | OlderStrategy):
        raise ConfigError(
            "FP1189 wrap_strategy takes a class made from flwr.serverapp.strategy.Strategy or "
            f"flwr.server.strategy.Strategy, got {flower_class!r:.100}"
        )
    if any(k.__module__.startswith("flwr.") and "DP" in k.__name__.replace("DifferentialPrivacy", "DP") for k in kinds):
        raise ConfigError(
            f"FP1190 {shown} promises privacy that fedpeft does not account for; use --privacy user_dp or local_dp"
        )
    if inspect.isabstract(flower_class):
        missing = ", ".join(sorted(flower_class.__abstractmethods__))
        raise ConfigError(f"FP1191 {shown} can't be made: it has no {missing}; write them, or subclass FedAvg")
    if issubclass(flower_class, MessageStrategy) and flower_class.start is not MessageStrategy.start:
        raise ConfigError(
            f"FP1192 {shown}.start replaces Flower's loop, but fedpeft runs the rounds itself; move its code "
            "into configure_train and aggregate_train"
        )


def _find_arguments(flower_class: type) -> dict[str, inspect.Parameter]:
    """Return the arguments of `__init__`, and of those that it passes **keywords on to."""
    found: dict[str, inspect.Parameter] = {}
    for base in flower_class.__mro__:
        if "__init__" not in vars(base):
            continue
        own = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
        named = [p for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        found = {p.name: p for p in named} | found
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    return found


def _find_plain_type(flower_class: type, parameter: inspect.Parameter) -> Any:
    """Return the type of an argument that a text can hold; None: a text can't hold it."""
    hint: Any = parameter.annotation
    if isinstance(hint, str):
        for base in flower_class.__mro__:
            try:
                hint = typing.get_type_hints(vars(base).get("__init__"))[parameter.name]
                break
            except (KeyError, NameError, TypeError, AttributeError):
                continue
    if hint is parameter.empty or isinstance(hint, str):
        if isinstance(parameter.default, PLAIN):
            return type(parameter.default)
        return bool | int | float | str if parameter.default in (parameter.empty, None) else None
    several = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    left = [kind for kind in several if kind in PLAIN]
    if not left:
        return None
    return hint if all(kind in (*PLAIN, type(None)) for kind in several) else left[0]


def _convert_to_arrays(state: Mapping[str, torch.Tensor], names: tuple[str, ...]) -> Arrays:
    """Return tensors as separate arrays, in the order of `names`; NumPy has no bf16, which becomes fp32."""
    plain = {torch.bfloat16: torch.float32}
    return {n: np.array(state[n].detach().to(plain.get(state[n].dtype, state[n].dtype)).numpy()) for n in names}


@contextmanager
def _seed_generators(seed: int, round_number: int) -> Iterator[None]:
    """Make the global generators, and so a strategy's draws, depend on the run's seed and the round alone."""
    before = random.getstate(), np.random.get_state()
    drawn = seeds.derive_seed(seed, "flower", round_number) % 2**32
    with torch.random.fork_rng(devices=[]):
        random.seed(drawn)
        np.random.seed(drawn)
        torch.manual_seed(drawn)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@contextmanager
def _silence_flower() -> Iterator[None]:
    """Silence Flower, which announces each call, and warns of its own defaults."""
    logger = logging.getLogger(QUIET)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
